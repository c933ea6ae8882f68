"""What pyproject.toml cannot say: the C extension, and three folders of the checkout that are one package."""

from setuptools import setup

PACKAGES = {
    "tzfs": "tzfs",
    "tzfs.cli": "tzfs/cli",
    "tzfs.engine": "tzfs/engine",
    "tzfs.engine.check": "tzfs/engine/check",
    "tzfs.format": "tzfs/format",
    "tzfs.store": "tzfs/store",
    "tzfs.mount": "mount",
    "tzfs.native": "native",
}

setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={"tzfs": ["py.typed"], "tzfs.format": ["FORMAT.md"]},
    cffi_modules=["native/build.py:ffibuilder"],
)
