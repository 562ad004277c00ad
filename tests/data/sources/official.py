"""Small datasets in the layouts of the official downloads, quirks included, as folders and as archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

Tree = Mapping[str, bytes]  # contents by path


def picture(number: int, kind: str = "JPEG") -> bytes:
    """A picture that differs from those of all other numbers."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pictures(paths: Sequence[str]) -> dict[str, bytes]:
    """A picture for each path."""
    return {path: picture(number) for number, path in enumerate(paths)}


def write_folder(tree: Tree, root: Path) -> Path:
    for name, data in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(tree: Tree, path: Path) -> Path:
    """As macOS packs: with folders, and a file of its own beside each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree.items():
            folder, _, base = name.rpartition("/")
            if folder and f"{folder}/" not in archive.namelist():
                archive.mkdir(folder)
            archive.writestr(name, data)
            archive.writestr(f"__MACOSX/{folder}/._{base}", b"\0\5\26\7 resource fork")
            archive.writestr(f"{folder}/._{base}".lstrip("/"), b"\0\5\26\7 resource fork")
    return path


def write_tar(tree: Tree, path: Path) -> Path:
    """Compressed as the name says; with folders and "./" before every name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compression = {"tgz": "gz", "tar": ""}.get(path.suffix[1:], path.suffix[1:])
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, data in {**tree, **{f"{name.rpartition('/')[0]}/._x": b"\0" for name in tree}}.items():
            folder = tarfile.TarInfo(f"./{name.rpartition('/')[0]}")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def cub200() -> dict[str, bytes]:
    """Three species to train on, two to test."""
    species = {
        1: "001.Black_footed_Albatross",
        2: "002.Laysan_Albatross",
        100: "100.Brown_Pelican",
        101: "101.White_Pelican",
        200: "200.Common_Yellowthroat",
    }
    paths = [
        (number, f"{name}/{name[4:]}_000{k}_{number}{k}.jpg") for number, name in species.items() for k in range(1, 4)
    ]
    tree = pictures([f"CUB_200_2011/images/{path}" for _, path in paths])
    lists = {
        "images.txt": [f"{image} {path}" for image, (_, path) in enumerate(paths, start=1)],
        "image_class_labels.txt": [f"{image} {number}" for image, (number, _) in enumerate(paths, start=1)],
        "classes.txt": [f"{number} {name}" for number, name in species.items()],
    }
    # The archive has a file outside of its folder.
    tree["attributes.txt"] = b"1 has_bill_shape::curved_(up_or_down)\n"
    return tree | {f"CUB_200_2011/{name}": ("\n".join(rows) + "\n").encode() for name, rows in lists.items()}


CAR_NAMES = [f"Maker Model {number} 2012" for number in range(1, 197)]
CAR_NAMES[0] = "Ram C/V Cargo Van Minivan 2012"
CAR_NAMES[1] = "Citroën Décapotable 2010"
_CAR_CLASSES = [1, 1, 2, 98, 98, 99, 99, 196]


def cars196() -> dict[str, bytes]:
    """All cars in one folder."""
    paths = [f"car_ims/{number:06d}.jpg" for number in range(1, len(_CAR_CLASSES) + 1)]
    rows = [(path, 1, 1, 5, 6, number, 0) for path, number in zip(paths, _CAR_CLASSES, strict=True)]
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    return pictures(paths) | {"cars_annos.mat": matlab(annotations=structs(fields, rows), class_names=cells(CAR_NAMES))}


def cars196_devkit() -> dict[str, bytes]:
    """The cars of the challenge: two folders, whose split is another one."""
    tree: dict[str, bytes] = {}
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    files = {"cars_train": "devkit/cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}
    for start, (folder, file) in enumerate(files.items()):
        classes = _CAR_CLASSES[start::2]
        names = [f"{number:05d}.jpg" for number in range(1, len(classes) + 1)]
        rows = [(1, 1, 5, 6, number, name) for name, number in zip(names, classes, strict=True)]
        tree |= {f"{folder}/{name}": picture(100 * start + place) for place, name in enumerate(names)}
        tree[file] = matlab(annotations=structs(fields, rows))
    unlabelled = structs(fields[:4], [(1, 1, 5, 6)])
    return tree | {
        "devkit/cars_meta.mat": matlab(class_names=cells(CAR_NAMES)),
        "devkit/cars_test_annos.mat": matlab(annotations=unlabelled),
    }


def sop() -> dict[str, bytes]:
    """Products of two kinds; lists with the line ends of Windows."""
    products = {
        "train": [(1, "bicycle"), (2, "bicycle"), (3, "coffee_maker")],
        "test": [(4, "bicycle"), (22634, "table")],
    }
    tree, image = {}, 0
    for split, listed in products.items():
        rows = ["image_id class_id super_class_id path"]
        for product, kind in listed:
            for view in range(3):
                image += 1
                path = f"{kind}_final/{111085122871 + product}_{view}.JPG"
                rows.append(f"{image} {product} 1 {path}")
                tree[f"Stanford_Online_Products/{path}"] = picture(image)
        tree[f"Stanford_Online_Products/Ebay_{split}.txt"] = ("\r\n".join(rows) + "\r\n").encode()
    return tree


def inshop() -> dict[str, bytes]:
    """Items of men and women; one is listed under two kinds of clothes."""
    rows = [
        ("img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg", "id_00000001", "train"),
        ("img/WOMEN/Blouses_Shirts/id_00000001/02_2_side.jpg", "id_00000001", "train"),
        ("img/WOMEN/Graphic_Tees/id_00000001/02_2_side.jpg", "id_00000001", "train"),
        ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "train"),
        ("img/MEN/Denim/id_00000080/01_7_additional.jpg", "id_00000080", "train"),
        ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "query"),
        ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "gallery"),
        ("img/MEN/Pants/id_00000003/02_4_full.jpg", "id_00000003", "gallery"),
        ("img/MEN/Pants/id_00000003/02_1_front.jpg", "id_00000003", "query"),
    ]
    text = [str(len(rows)), "image_name item_id evaluation_status"]
    text += [f"{path:<70} {product} {split}" for path, product, split in rows]
    return pictures([path for path, _, _ in rows]) | {"list_eval_partition.txt": "\n".join(text).encode()}


def inaturalist2018() -> dict[str, bytes]:
    """Species of three groups; one picture of the challenge is in no list."""
    folder = "train_val2018"
    train = [
        f"{folder}/{species}/{n:032x}.jpg" for species in ("Plantae/7477", "Plantae/5988", "Aves/2761") for n in (1, 2)
    ]
    test = [f"{folder}/{species}/{n:032x}.jpg" for species in ("Aves/3000", "Fungi/1111") for n in (3, 4, 5)]
    lists = {"train": train, "test": test}
    return pictures([*train, *test, f"{folder}/Fungi/9/0.jpg"]) | {
        f"Inat_dataset_splits/Inaturalist_{split}_set1.txt": "\n".join(paths).encode() for split, paths in lists.items()
    }


def matlab(**variables: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def cells(values: Sequence[str]) -> Any:
    return np.array([values], object)


def structs(fields: Sequence[str], rows: Sequence[tuple]) -> Any:
    array = np.zeros((1, len(rows)), [(field, object) for field in fields])
    for place, row in enumerate(rows):
        array[0, place] = row
    return array


def below(tree: Tree, *folders: str) -> dict[str, bytes]:
    """The files that lie in some of the outermost folders."""
    return {name: data for name, data in tree.items() if name.split("/")[0] in folders}


def without(tree: Tree, *names: str) -> dict[str, bytes]:
    """The files except some; a name with "/" at its end is a folder."""
    return {name: data for name, data in tree.items() if not any(name == n or name.startswith(n) for n in names)}
