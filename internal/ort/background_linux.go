package ort

import "golang.org/x/sys/unix"

// nicer is how much threads that give way add to their niceness: they get a fifth of what another thread gets on the
// same processor. More would starve images while answers are generated; with less, an answer's steps take more than
// twice their time.
const nicer = 7

// giveWay lowers the calling thread's priority. That it cannot be lowered is no reason not to run.
func giveWay() {
	if n, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, min(20-n+nicer, 19)) // the system call gives 20 less the niceness
	}
}
