"""What counts as a secret, what a config may hold, and what messages tell."""

from __future__ import annotations

import copy
import pickle
import secrets
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.config.load import ConfigError, check_config, load_config, override_values, set_value
from dmlscale.config.secrets import is_secret_name, literal_secrets, secret_in_url, secrets_in_text
from dmlscale.data.errors import DataError
from dmlscale.data.storage.references import resolved
from dmlscale.data.storage.storage import Storage
from dmlscale.data.storage.transfer_errors import clear_errors
from dmlscale.redaction import shown, without
from dmlscale.tuning.config import load_sweep

ROOT = Path(__file__).parents[2]
PLANTED = "pl4nted-s3cret-value"
SMALL = {"data": {"path": "data/x"}, "losses": [{"name": "triplet"}], "train": {"steps": 1}}

SECRET_NAMES = """token hf_token HF_TOKEN AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID aws_session_token AWSSecretKey secret
password db_password dbpassword db_passwd DB_PWD MLFLOW_TRACKING_PASSWORD api_key apiKey myapikey WANDB_API_KEY
AccountKey account_key connection_string AZURE_STORAGE_CONNECTION_STRING sas_token private_key credential credentials
client_secret Authorization SSECustomerKey X-Amz-Security-Token cookie passphrase pass db_pass passwords
password2 api_keys token2 auth"""
PLAIN_NAMES = """key keys tokenizer samples_per_key class_token reg_tokens num_tokens max_tokens PWD OLDPWD label_key
private_key_path token_length cache_folder keep_checkpoints MLFLOW_TRACKING_URI two_pass compass secretary basic monkey
embedding_dim bank_lr author authority MASTER_PORT password_file key_column block_layers_token use_mix_token"""


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", PLAIN_NAMES.split())
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


def test_no_key_of_our_own_looks_like_a_secret() -> None:
    def names(values: object) -> set[str]:
        if isinstance(values, dict):
            return set(values) | {name for value in values.values() for name in names(value)}
        return {name for value in values for name in names(value)} if isinstance(values, list) else set()

    configs = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs").rglob("*.yaml")]
    own = names([*configs, check_config(SMALL, "small").model_dump(mode="json")])
    assert len(own) > 80
    assert [name for name in own if is_secret_name(str(name))] == []


URLS_WITH_SECRETS = [
    f"https://me:{PLANTED}@host/x",
    f"s3://key:{PLANTED}@bucket/x",
    f"https://{PLANTED}@github.com/x",  # a token in the place of the user
    f"postgresql+psycopg2://me:{PLANTED}@host:5432/mlflow",
    f"https://me:{PLANTED}/with/slashes@host/x",
    f"https://me:{PLANTED}@with@ats@host/x",
    f"https://host/x?sv=2024&sig={PLANTED}",
    f"https://bucket.s3.amazonaws.com/x?X-Amz-Algorithm=A&X-Amz-Signature={PLANTED}",
    f"https://host/x?access_token={PLANTED}",
    f"simplecache::https://me:{PLANTED}@host/x",
]


@pytest.mark.parametrize("url", URLS_WITH_SECRETS)
def test_urls_with_secrets_are_found_and_shown_without(url: str) -> None:
    assert secret_in_url(url)
    assert PLANTED not in shown(f"cannot read {url}: no answer")
    assert shown(f"cannot read {url}: no answer").startswith("cannot read ")


URLS_WITHOUT_SECRETS = """s3://bucket/a@b https://host:8080/a@b sftp://me@host/x abfs://container@account.dfs.core.windows.net/x
data/x me:x@y https://host/x?page=2&size=7 sqlite:////a/mlflow.db https://[::1]:5000/a@b hf://datasets/a/b@main
https://host/token/x"""


@pytest.mark.parametrize("url", URLS_WITHOUT_SECRETS.split())
def test_urls_without_secrets(url: str) -> None:
    assert not secret_in_url(url)
    assert shown(url).partition("?")[0] == url.replace("me@", "").replace("container@", "").partition("?")[0]


WORDS = st.text(string.ascii_letters + string.digits + "-_.~%!$*+,", min_size=6, max_size=20)


@given(user=WORDS, password=WORDS, host=st.sampled_from(["host", "10.0.0.1:5000", "[::1]:80"]), path=WORDS)
def test_no_password_survives(user: str, password: str, host: str, path: str) -> None:
    url = f"https://{user}:{password}@{host}/{path}"
    assert secret_in_url(url)
    assert shown(url) == f"https://{host}/{path}"


def test_the_longest_of_known_values_is_hidden_first() -> None:
    text = f"header b'Bearer {PLANTED}\\n' of {PLANTED}"
    assert without(text, [PLANTED[:6], f"{PLANTED}\n"]) == "header b'Bearer ***' of ***"


def letters(count: int) -> str:
    return "".join(secrets.choice(string.ascii_letters) for _ in range(count))


# Put together here, so that no scanner takes this file for a leak.
CREDENTIALS = {
    "private key": "-----BEGIN " + f"RSA PRIVATE KEY-----\n{letters(64)}\n",
    "AWS access key": "aws_access_key_id = AK" + "IAIOSFODNN7EXAMPLE",
    "AWS secret key": f"aws_secret_access_key = {letters(40)}",
    "GitHub token": f"TOKEN=ghp_{letters(36)}",
    "Slack token": "xox" + f"b-123456789012-{letters(24)}",
    "Hugging Face token": f"export HF_TOKEN=hf_{letters(34)}",
    "Google API key": f"AIza{letters(35)}",
    "bearer header": f"Authorization: Bearer {letters(40)}",
    "URL with a password": f"MLFLOW_TRACKING_URI=https://me:{PLANTED}@mlflow.our.net",
}


@pytest.mark.parametrize("kind", CREDENTIALS)
def test_credentials_in_a_text(kind: str) -> None:
    assert kind in secrets_in_text(f"first line\n{CREDENTIALS[kind]}\nlast line")


def test_our_own_tree_has_no_credentials() -> None:
    rooms = ("dmlscale", "tests", "benchmarks", "configs", "docs", "jobs")
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".md", ".yaml")]
    assert len(files) > 300
    found = {str(path.relative_to(ROOT)): secrets_in_text(path.read_text()) for path in files}
    assert {path: kinds for path, kinds in found.items() if kinds} == {}


REFUSED = {
    "data.storage_options.secret": PLANTED,
    "data.storage_options.client_kwargs.headers.Authorization": f"Bearer {PLANTED}",
    "data.storage_options.password": 1234567,
    "data.path": f"https://me:{PLANTED}@host/x",
    "tracking.uri": f"http://me:{PLANTED}@host:5000",
    "run.folder": f"s3://me:{PLANTED}@bucket/runs",
    "model.options.hf_token": PLANTED,
    "losses.0.api_key": PLANTED,
    "data.source": {"name": "manifest", "path": f"https://host/list.csv?sig={PLANTED}"},
    "model.options.name": f"ghp_{letters(36)}",
}


@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("way", ["file", "override", "sweep"])
def test_a_secret_in_a_config_is_refused_by_its_key_and_never_printed(tmp_path: Path, key: str, way: str) -> None:
    value = REFUSED[key]
    written = yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("\n...")
    path = tmp_path / "config.yaml"
    values = copy.deepcopy(SMALL)
    if way != "override":
        set_value(values, key, value)
    space = {"optim.backbone_lr": {"log_uniform": [1e-4, 1e-2]}}
    path.write_text(yaml.safe_dump({"base": values, "space": space} if way == "sweep" else values))
    overrides = [f"{key}={written}"] if way == "override" else []
    with pytest.raises(ConfigError) as refused:
        load_sweep(str(path), []) if way == "sweep" else load_config(path, overrides)
    message = str(refused.value)
    assert key in message
    assert "environment" in message or "MLFLOW_TRACKING_" in message
    assert PLANTED not in message
    assert str(value) not in message


def test_a_config_that_is_no_yaml_is_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"data:\n  storage_options: {{secret: '{PLANTED}}}\n")
    with pytest.raises(ConfigError, match=r"line \d+, column") as refused:
        load_config(path)
    assert PLANTED not in str(refused.value)
    with pytest.raises(ConfigError, match=r"data.storage_options") as refused:
        override_values({}, [f"data.storage_options={{secret: '{PLANTED}}}"])
    assert PLANTED not in str(refused.value)


def test_options_of_a_source_that_is_packed_are_looked_at_too() -> None:
    with pytest.raises(ConfigError, match="shards"):
        override_values({"name": "webdataset"}, [f"shards=https://host/x-000.tar?sig={PLANTED}"])


@pytest.mark.parametrize("value", ["env:MY_SECRET", "Bearer env:MY_SECRET", None, True, "", "anon"])
def test_references_and_ways_to_sign_in_are_taken(value: object) -> None:
    config = check_config(SMALL | {"data": {"path": "data/x", "storage_options": {"token": value}}}, "small")
    assert config.data.storage_options == {"token": value}


def test_a_count_of_tokens_is_no_secret_and_a_number_as_password_is_one() -> None:
    assert list(literal_secrets({"model": {"options": {"fusion_token": 2}}})) == []
    assert [line.partition(":")[0] for line in literal_secrets({"db": {"password": 1234567}})] == ["db.password"]


def test_the_advice_for_a_database_is_not_that_for_a_server() -> None:
    (line,) = literal_secrets({"tracking": {"uri": "postgresql://me:hunter22@host/mlflow"}})
    assert "PGPASSWORD" in line
    assert "MLFLOW_TRACKING_PASSWORD" not in line


def test_references_stand_for_storage_options_alone() -> None:
    with pytest.raises(ConfigError, match=r"model.options.hf_token: only storage_options take references"):
        check_config(SMALL | {"model": {"options": {"hf_token": "env:HF_TOKEN"}}}, "small")


NESTED = {"key": "env:PLANTED_KEY", "client_kwargs": {"headers": {"A": "Bearer env:PLANTED_SECRET"}, "list": [1, "x"]}}


def test_references_are_resolved_however_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", "k")
    monkeypatch.setenv("PLANTED_SECRET", PLANTED)
    expected = {"key": "k", "client_kwargs": {"headers": {"A": f"Bearer {PLANTED}"}, "list": [1, "x"]}}
    assert resolved(NESTED) == expected
    assert NESTED["key"] == "env:PLANTED_KEY"


def test_a_missing_variable_is_named_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", "k")
    monkeypatch.delenv("PLANTED_SECRET", raising=False)
    key = r"data.storage_options.client_kwargs.headers.A refers to the environment variable PLANTED_SECRET"
    with pytest.raises(DataError, match=key):
        Storage.open("s3://bucket/x", NESTED)


def test_an_error_that_tells_a_secret_is_cut_off() -> None:
    with (
        pytest.raises(DataError, match=r"Illegal header value b'Bearer \*\*\*") as failed,
        clear_errors("s3://b", [PLANTED]),
    ):
        raise ValueError(f"Illegal header value b'Bearer {PLANTED}\\n'")
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
    # What a variable has around it does not stand in the error.
    with pytest.raises(DataError) as failed, clear_errors("s3://b", [f"{PLANTED}\n"]):
        raise ValueError(f"wrong {PLANTED}")
    assert failed.value.__cause__ is None
    with pytest.raises(DataError) as failed, clear_errors("s3://b", [PLANTED]):
        raise ValueError("no secret")
    assert isinstance(failed.value.__cause__, ValueError)  # where it says nothing, it helps


def test_a_storage_holds_the_reference_and_messages_do_not_hold_the_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLANTED_SECRET", f"{PLANTED}\n")  # as a careless `echo` into a secret file leaves it
    options = {"client_kwargs": {"headers": {"Authorization": "Bearer env:PLANTED_SECRET"}}}
    storage = Storage.open("http://127.0.0.1:9/set", options)
    assert PLANTED.encode() not in pickle.dumps(storage)
    assert PLANTED not in f"{storage!r} {storage}"
    with pytest.raises(DataError) as failed:
        storage.download("x", tmp_path / "x")
    error: BaseException | None = failed.value
    while error is not None:
        assert PLANTED not in f"{error!r} {error}"
        error = error.__cause__
    wrong = Storage("s3://bucket/x", {"secret": "env:PLANTED_SECRET", "no_such_option": "env:PLANTED_SECRET"})
    with pytest.raises(DataError) as failed:
        wrong.size("x")
    assert PLANTED not in str(failed.value)
