package keep

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// Init starts command as a container's process 1, tells on the named pipe started how that
// went, and returns the exit code that the container ends with.
func Init(started string, command []string) int {
	// The image's user may write it and not read it. Where nobody listens there is nothing to be told.
	pipe, err := os.OpenFile(started, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil && !errors.Is(err, syscall.ENXIO) {
		fmt.Fprintln(os.Stderr, "atelier-keep:", err)
		return 1
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	child, err := start(command)
	if err != nil {
		say(pipe, Failed+err.Error())
		return 127
	}
	say(pipe, Started)
	for sig := range signals {
		switch sig {
		case syscall.SIGCHLD:
			if status, ended := reap(child); ended {
				return status
			}
		case syscall.SIGURG, syscall.SIGPIPE, syscall.SIGTTIN, syscall.SIGTTOU: // its own; to ignore them would be inherited
		default:
			_ = syscall.Kill(child, sig.(syscall.Signal)) // it may have ended: then SIGCHLD is on its way
		}
	}
	return 1
}

// say writes a line and closes the pipe. Where it is full nobody listens any more.
func say(pipe *os.File, word string) {
	_, _ = fmt.Fprintf(pipe, "%.*s\n", MaxWord-1, word) // the driver finds out that the container ended
	_ = pipe.Close()                                    // likewise
}

// start starts command with what Init has itself. Both of its outputs are one, so that
// the order of lines stays.
func start(command []string) (pid int, err error) {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return 0, err
	}
	p, err := os.StartProcess(path, command, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stdout},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	pid = p.Pid
	_ = p.Release() // reap waits for all children alike
	return pid, nil
}

// reap takes in all children that have ended, and returns how child did.
func reap(child int) (code int, ended bool) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil || pid <= 0:
			return code, ended
		case pid == child && status.Signaled():
			code, ended = SignalExit+int(status.Signal()), true
		case pid == child:
			code, ended = status.ExitStatus(), true
		}
	}
}
