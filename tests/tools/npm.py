"""npm: an application with nested dependencies is installed from a registry on the loopback, run, and installed again.

The registry is served by this process: its packages are made here, and nothing outside the machine is asked.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools.programs import run

PACKAGES = 24
FILES_EACH = 20


def _tarball(name: str, version: str, dependencies: dict[str, str]) -> bytes:
    """A package of some files whose `require` answers `name@version` and what its dependencies answer."""
    manifest = {
        "name": name,
        "version": version,
        "main": "index.js",
        "bin": {f"{name}-tool": "tool.js"},
        "dependencies": dependencies,
    }
    required = ",".join(f'require("{d}")' for d in sorted(dependencies))
    files = {
        "package.json": json.dumps(manifest),
        "index.js": f'require("./lib/file-0");module.exports=["{name}@{version}",{required}].flat().sort();',
        "tool.js": f'#!/usr/bin/env node\nconsole.log("{name} tool");\n',
        **{f"lib/file-{n}.js": f"module.exports={n};\n" + "// filler\n" * (n * 37) for n in range(FILES_EACH)},
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode = len(text.encode()), 0o755 if path == "tool.js" else 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def _packages() -> dict[str, dict[str, bytes]]:
    """Tarballs by name and version.  Every third package needs version 1 of `base`, the others version 2."""
    packages = {"base": {v: _tarball("base", v, {}) for v in ("1.0.0", "2.0.0")}}
    for number in range(PACKAGES):
        dependencies = {"base": "1.0.0" if number % 3 == 0 else "2.0.0"}
        if number:
            dependencies[f"part-{number // 2}"] = "^1.0.0"
        if number // 2 == number:
            dependencies.pop(f"part-{number}", None)
        packages[f"part-{number}"] = {"1.0.0": _tarball(f"part-{number}", "1.0.0", dependencies)}
    return packages


@contextmanager
def registry() -> Iterator[str]:
    """The address of a registry that serves the packages while the body runs."""
    packages = _packages()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, _, rest = self.path.lstrip("/").partition("/-/")
            versions = packages.get(name)
            if versions is None:
                self._answer(404, b"{}", "application/json")
            elif rest:
                self._answer(
                    200, versions[rest.removeprefix(f"{name}-").removesuffix(".tgz")], "application/octet-stream"
                )
            else:
                self._answer(200, json.dumps(self._document(name, versions)).encode(), "application/json")

        def _document(self, name: str, versions: dict[str, bytes]) -> dict[str, object]:
            described: dict[str, object] = {}
            for version, tarball in versions.items():
                with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
                    manifest = archive.extractfile("package/package.json")
                    assert manifest is not None
                    described[version] = {
                        **json.load(manifest),
                        "dist": {
                            "tarball": f"http://{self.headers['Host']}/{name}/-/{name}-{version}.tgz",
                            "integrity": "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode(),
                        },
                    }
            return {"name": name, "dist-tags": {"latest": max(versions)}, "versions": described}

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.block_on_close = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def scenario(directory: Path) -> None:
    """`npm install`, the application's answer, `npm ls`, `npm ci` from the lock file and the cache, `npm uninstall`."""
    application = directory / "application"
    application.mkdir()
    wanted = {f"part-{n}": "^1.0.0" for n in range(PACKAGES)}
    (application / "package.json").write_text(
        json.dumps({"name": "application", "version": "1.0.0", "dependencies": wanted})
    )
    (application / "index.js").write_text(
        'console.log(Object.keys(require("./package.json").dependencies).map(d => require(d)).flat().length);'
    )
    with registry() as address:
        surroundings = {
            "npm_config_registry": address,
            "npm_config_cache": str(directory / "cache"),
            "npm_config_audit": "false",
            "npm_config_fund": "false",
            "npm_config_update_notifier": "false",
            "NO_UPDATE_NOTIFIER": "1",
        }

        def npm(*arguments: str) -> str:
            return run("npm", *arguments, cwd=application, extra=surroundings)

        npm("install")
        answer = run("node", "index.js", cwd=application)
        assert int(answer) > 2 * PACKAGES
        assert (application / "node_modules" / ".bin" / "part-0-tool").is_symlink()
        assert run("node_modules/.bin/part-7-tool", cwd=application) == "part-7 tool\n"
        assert len(list(application.glob("node_modules/**/base/package.json"))) > 1, "both versions of base are there"
        npm("ls", "--all")
        shutil.rmtree(application / "node_modules")
        npm("ci", "--offline")
        assert run("node", "index.js", cwd=application) == answer
        npm("uninstall", "part-3")
        assert not (application / "node_modules" / "part-23").is_symlink()
        assert json.loads((application / "package.json").read_text())["dependencies"].keys() == wanted.keys() - {
            "part-3"
        }
