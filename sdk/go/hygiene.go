package handover

import (
	"errors"
	"syscall"
)

const prSetDumpable = 4

// HardenProcess keeps the keys of this process out of core dumps and away from other processes of the same user. Call it
// first of all.
func HardenProcess() error {
	err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	if _, _, number := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); number != 0 {
		err = errors.Join(err, number)
	}
	return err
}
