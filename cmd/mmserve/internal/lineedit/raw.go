//go:build linux || darwin

package lineedit

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// rawMode has a terminal give each key as it is typed, and show none by itself. Unlike MakeRaw of x/term it leaves
// output as it is, so that what others write, log lines say, stands in its place.
func rawMode(f *os.File) (restore func() error, err error) {
	fd := int(f.Fd())
	was, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, err
	}
	now := *was
	now.Iflag &^= unix.ICRNL | unix.INLCR | unix.IGNCR | unix.IXON | unix.ISTRIP | unix.BRKINT
	now.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, setTermios, &now); err != nil {
		return nil, err
	}
	return func() error { return unix.IoctlSetTermios(fd, setTermios, was) }, nil
}

// stopSelf stops this process and those of its group, as Ctrl-Z does, until the shell has them go on.
func stopSelf() { _ = syscall.Kill(0, syscall.SIGTSTP) }

// watchSize calls changed when the window has another size.
func watchSize(changed func()) (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	go func() {
		for range c {
			changed()
		}
	}()
	return func() { signal.Stop(c); close(c) }
}
