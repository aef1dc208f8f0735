"""Trainer files are run with stand-ins for nnU-Net's modules, which leave no trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures.thread import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

from segwright.compat.nnunet.loading import load_trainer_file, split_reference
from segwright.compat.nnunet.modules import NnunetFolders, StandIns
from segwright.compat.nnunet.names import loaders, losses
from segwright.core.errors import ConfigError
from segwright.core.extensions.user_code import UserCodeError

Write = Callable[[str, str], Path]

IMPORT = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
PLAIN = f"{IMPORT}class nnUNetTrainerPlain(nnUNetTrainer):\n    pass\n"


@pytest.fixture(autouse=True)
def unchanged(base: type, tmp_path: Path) -> Iterator[None]:
    """Check that nothing of the process is changed by a test."""
    modules, path, finders = dict(sys.modules), [*sys.path], [*sys.meta_path]
    yield
    assert dict(sys.modules) == modules
    assert sys.path == path
    assert sys.meta_path == finders


def test_class_with_the_name_of_the_file_is_found(base: type, write: Write) -> None:
    file = write("nnUNetTrainerPlain.py", f"{PLAIN}class Other(nnUNetTrainer):\n    pass\n")
    loaded = load_trainer_file(file)
    assert loaded.class_name == "nnUNetTrainerPlain"
    assert issubclass(loaded.cls, base)
    assert loaded.sha256 == sha256(file.read_bytes()).hexdigest()


def test_only_leaf_is_found(write: Write) -> None:
    file = write("trainers.py", f"{PLAIN}class Long(nnUNetTrainerPlain):\n    pass\n")
    assert load_trainer_file(file).class_name == "Long"


def test_class_can_be_named(write: Write) -> None:
    file = write("trainers.py", f"{PLAIN}class Long(nnUNetTrainerPlain):\n    pass\n")
    assert load_trainer_file(*split_reference(f"{file}:nnUNetTrainerPlain")).class_name == "nnUNetTrainerPlain"


def test_several_candidates_are_listed(write: Write) -> None:
    file = write("trainers.py", f"{PLAIN}class B(nnUNetTrainer):\n    pass\n")
    with pytest.raises(ConfigError, match=r"several trainers, B, nnUNetTrainerPlain; name one as trainers.py:CLASS"):
        load_trainer_file(file)


def test_misspelt_class_is_suggested(write: Write) -> None:
    with pytest.raises(ConfigError, match="did you mean 'nnUNetTrainerPlain'"):
        load_trainer_file(write("trainers.py", PLAIN), "nnUNetTrainerPlane")


def test_file_without_trainer_is_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match="defines no subclass of nnUNetTrainer"):
        load_trainer_file(write("trainers.py", IMPORT))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer file cannot be read .*FILE.py:Class"):
        load_trainer_file(tmp_path / "none.py")


def test_error_in_the_file_is_located(write: Write) -> None:
    with pytest.raises(UserCodeError, match=r"trainers.py:3: the trainer file failed with ZeroDivisionError"):
        load_trainer_file(write("trainers.py", f"{IMPORT}\n1 / 0\n"))


def test_syntax_error_is_located(write: Write) -> None:
    with pytest.raises(UserCodeError, match=r"trainers.py:2: the trainer file is not Python"):
        load_trainer_file(write("trainers.py", f"{IMPORT}class (:\n"))


def test_variants_are_found(base: type, write: Write) -> None:
    module = "nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision"
    name = "nnUNetTrainerNoDeepSupervision"
    file = write("flat.py", f"from {module} import {name}\nclass Flat({name}):\n    pass\n")
    assert [cls.__name__ for cls in load_trainer_file(file).cls.__mro__[:3]] == ["Flat", name, "nnUNetTrainer"]


def test_methods_import_while_the_context_is_open(base: type, write: Write) -> None:
    text = f"{PLAIN}    def find(self):\n        import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as found\n"
    loaded = load_trainer_file(write("late.py", text + "        return found.nnUNetTrainer\n"))
    with pytest.raises(ModuleNotFoundError, match="nnunetv2"):
        loaded.cls().find()
    with loaded.modules, loaded.modules:
        assert loaded.cls().find() is base


def test_modules_beside_the_file_are_found_and_kept_apart(write: Write) -> None:
    write("my_blocks.py", "VALUE = 1\n")
    first = load_trainer_file(write("one.py", f"import my_blocks\n{PLAIN}    value = my_blocks.VALUE\n"))
    write("other/my_blocks.py", "VALUE = 2\n")
    second = load_trainer_file(write("other/two.py", f"import my_blocks\n{PLAIN}    value = my_blocks.VALUE\n"))
    assert (first.cls.value, second.cls.value) == (1, 2)
    assert [*first.beside] == ["my_blocks"]
    with first.modules:
        assert sys.modules["my_blocks"].VALUE == 1


def test_modules_of_a_fork_are_found(write: Write) -> None:
    write("fork/nnunetv2/__init__.py", "raise RuntimeError('the stand-in is used')\n")
    write("fork/nnunetv2/nets/__init__.py", "")
    write("fork/nnunetv2/nets/big.py", "from nnunetv2.paths import nnUNet_raw\nVALUE = 3\n")
    write("fork/nnunetv2/training/loss/fancy.py", "VALUE = 4\n")
    file = write(
        "fork/nnunetv2/training/nnUNetTrainer/nnUNetTrainerBig.py",
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "from nnunetv2.nets.big import VALUE\nfrom nnunetv2.training.loss import fancy\n"
        "class nnUNetTrainerBig(nnUNetTrainer):\n    value = VALUE + fancy.VALUE\n",
    )
    loaded = load_trainer_file(file)
    assert loaded.cls.value == 7
    assert {"nnunetv2.nets.big", "nnunetv2.training.loss.fancy"} <= {*loaded.beside}
    assert not [*file.parents[3].rglob("*.pyc")]


def test_names_that_a_fork_adds_to_a_module_of_nnunet_are_found(write: Write) -> None:
    module = "nnunetv2/training/loss/compound_losses.py"
    text = "from nnunetv2.training.loss.dice import SoftDiceLoss\nclass DC_and_CE_loss:\n    pass\n"
    write(f"fork/{module}", f"{text}class Focal(SoftDiceLoss):\n    pass\n")
    file = write(
        "fork/nnunetv2/training/nnUNetTrainer/nnUNetTrainerFocal.py",
        "from nnunetv2.training.loss.compound_losses import DC_and_CE_loss, Focal\n"
        f"{PLAIN}    parts = (DC_and_CE_loss, Focal)\n",
    )
    loaded = load_trainer_file(file, "nnUNetTrainerPlain")
    ours, own = loaded.cls.parts
    assert ours is losses.DC_and_CE_loss
    assert issubclass(own, losses.SoftDiceLoss)
    assert loaded.beside == {"nnunetv2.training.loss.compound_losses": file.parents[3] / module}


@pytest.mark.parametrize("imports", ["from my_project.nets import VALUE", "from .nets import VALUE"])
def test_package_of_the_file_is_found(write: Write, imports: str) -> None:
    write("my_project/__init__.py", "")
    write("my_project/nets.py", "VALUE = 6\n")
    loaded = load_trainer_file(write("my_project/trainer.py", f"{imports}\n{PLAIN}    value = VALUE\n"))
    assert loaded.cls.value == 6
    assert loaded.cls.__module__ == "my_project.trainer"
    assert {*loaded.beside} == {"my_project", "my_project.nets"}


def test_missing_module_of_the_package_is_named(write: Write) -> None:
    file = write("my-project/trainer.py", f"from .nets import VALUE\n{PLAIN}")
    with pytest.raises(ConfigError, match=r"trainer.py:1: there is no module my-project.nets below .*; put it there"):
        load_trainer_file(file)
    write("my-project/nets.py", "VALUE = 9\n")
    assert load_trainer_file(file).class_name == "nnUNetTrainerPlain"


def test_module_of_an_absent_fork_is_named(write: Write) -> None:
    file = write("trainers.py", f"from nnunetv2.nets.big import Big\n{PLAIN}")
    with pytest.raises(
        ConfigError, match=r"trainers.py:1: there is no module nnunetv2.nets here; if it belongs to a fork"
    ):
        load_trainer_file(file)


def test_name_of_an_absent_fork_is_named(write: Write) -> None:
    file = write("trainers.py", f"from nnunetv2.training.loss.dice import Focal\n{PLAIN}")
    with pytest.raises(ConfigError, match=r"trainers.py:1: nnunetv2.training.loss.dice has no 'Focal' here; if it bel"):
        load_trainer_file(file)


def test_missing_package_is_named(write: Write) -> None:
    file = write("trainers.py", f"import no_such_package.nets\n{PLAIN}")
    with pytest.raises(ConfigError, match=r"trainers.py:1: the trainer file needs no_such_package"):
        load_trainer_file(file)


def test_absent_transforms_may_be_imported_but_not_used(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segwright.compat.nnunet.modules.absent_packages", lambda: ("batchgeneratorsv2",))
    text = f"from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms\n{PLAIN}"
    loaded = load_trainer_file(write("unused.py", f"{text}    def f(self) -> ComposeTransforms:\n        pass\n"))
    assert loaded.class_name == "nnUNetTrainerPlain"
    used = write("used.py", f"{text}    def f(self):\n        return ComposeTransforms([])\n")
    with pytest.raises(ConfigError, match=r"used.py:6: .*batchgeneratorsv2 is not installed.*nnunet-transforms"):
        load_trainer_file(used)


def test_absent_transform_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segwright.compat.nnunet.modules.absent_packages", lambda: ("batchgeneratorsv2",))
    with StandIns():
        from batchgeneratorsv2.transforms.spatial import SpatialTransform
    with pytest.raises(ConfigError, match="uses batchgeneratorsv2.transforms.spatial.SpatialTransform"):
        SpatialTransform()


def test_installed_package_is_hidden_for_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = ModuleType("nnunetv2")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "nnunetv2", installed)
        with StandIns():
            import nnunetv2

            assert nnunetv2 is not installed
        assert sys.modules["nnunetv2"] is installed


def test_installed_transforms_are_used_but_not_their_processes(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write("site/batchgenerators/__init__.py", "").parent
    write("site/batchgenerators/transforms.py", "from acvl_utils.crop import VALUE\n")
    write("site/batchgenerators/dataloading/__init__.py", "")
    write("site/batchgenerators/dataloading/single_threaded_augmenter.py", "raise RuntimeError\n")
    write("site/acvl_utils/crop.py", "VALUE = 8\n")
    before = dict(sys.modules)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(package.parent))
        text = "from batchgenerators.transforms import VALUE\n"
        text += "from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter\n"
        loaded = load_trainer_file(write("a.py", f"{text}{PLAIN}    parts = VALUE, SingleThreadedAugmenter\n"))
        assert loaded.cls.parts == (8, loaders.SingleThreadedAugmenter)
        for name in {*sys.modules} - {*before}:
            patch.delitem(sys.modules, name)
    for name in {*sys.modules} - {*before}:
        del sys.modules[name]


def test_package_has_path_and_file() -> None:
    with StandIns():
        import nnunetv2
        import nnunetv2.paths

        assert isinstance(nnunetv2.__path__[0], str)
        assert nnunetv2.__file__.endswith("__init__.py")
        assert nnunetv2.paths.nnUNet_raw is None


def test_folders_are_strings(tmp_path: Path) -> None:
    with StandIns(folders=NnunetFolders(results=tmp_path)):
        from nnunetv2.paths import nnUNet_results

        assert nnUNet_results == str(tmp_path)
        assert nnUNet_results.is_set()


def test_changes_of_the_search_path_last_as_long_as_the_context(write: Write) -> None:
    folder = write("elsewhere/far_away_nets.py", "VALUE = 5\n").parent
    text = f"import sys\nsys.path.append({str(folder)!r})\nfrom far_away_nets import VALUE\n{PLAIN}"
    text += "    def find(self):\n        import far_away_nets\n        return far_away_nets.VALUE\n"
    loaded = load_trainer_file(write("trainers.py", text))
    with loaded.modules:
        assert str(folder) in sys.path
        assert loaded.cls().find() == 5


def test_nothing_is_left_when_the_file_raises(write: Write) -> None:
    file = write("trainers.py", f"{IMPORT}import sys\nsys.path.insert(0, '/nowhere')\nraise SystemExit\n")
    with pytest.raises(UserCodeError, match="SystemExit"):
        load_trainer_file(file)


def test_threads_share_the_context(base: type) -> None:
    modules = StandIns()

    def enter(_: int) -> bool:
        with modules:
            from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

            return nnUNetTrainer is base

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(enter, range(200)))
