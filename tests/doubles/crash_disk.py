"""A disk that loses unsynced data, with a power cut at a chosen step."""

from dataclasses import dataclass, field


class PowerCutError(Exception):
    """Raised at the simulated power cut."""


@dataclass
class CrashDisk:
    """A folder with a page cache: what was not synced may be lost or torn, and power goes after `steps` steps.

    `folder_sync` False: a folder's sync does nothing, as under Gramine. A renamed file's sync makes its name safe.
    """

    synced: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    data_synced: dict[str, bytes] = field(default_factory=dict)
    steps: int = 10**9
    folder_sync: bool = True
    moved: set[str] = field(default_factory=set)

    def _step(self) -> None:
        if self.steps == 0:
            raise PowerCutError
        self.steps -= 1

    def names(self) -> list[str]:
        return sorted(self.files)

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def write(self, name: str, data: bytes) -> None:
        self._step()
        self.files[name] = data

    def sync(self, name: str) -> None:
        self._step()
        self.data_synced[name] = self.files[name]
        if name in self.moved:
            self._commit_names()

    def rename(self, old: str, new: str) -> None:
        self._step()
        self.files[new] = self.files.pop(old)
        if old in self.data_synced:
            self.data_synced[new] = self.data_synced.pop(old)
        self.moved.add(new)

    def remove(self, name: str) -> None:
        self._step()
        del self.files[name]

    def sync_folder(self) -> None:
        self._step()
        if self.folder_sync:
            self._commit_names()

    def _commit_names(self) -> None:
        self.synced = self._torn()
        self.moved.clear()

    def _torn(self) -> dict[str, bytes]:
        """Return all current names; a file with unsynced bytes has lost its second half."""
        return {
            name: content
            if content in (self.data_synced.get(name), self.synced.get(name))
            else content[: len(content) // 2]
            for name, content in self.files.items()
        }

    def after_power_cut(self, keep_names: bool) -> "CrashDisk":
        """Return what the next start finds: names of the last folder sync, or all names; unsynced bytes are torn."""
        left = self._torn() if keep_names else self.synced
        return CrashDisk(dict(left), dict(left), folder_sync=self.folder_sync)
