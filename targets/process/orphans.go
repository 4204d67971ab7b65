package process

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	orphansTime = 2 * time.Second        // bounds how long the end of orphans is waited for
	lookAgain   = 100 * time.Millisecond // after the last of them ended
)

// adopt makes this process the parent of those that the module's processes leave
// behind, whatever group they put themselves in. Without it they would outlive the
// module as init's.
func adopt() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // a kernel that refuses it leaves the group alone to find them
}

// orphans returns the children of this process other than main.
func orphans(main int) []int {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var pids []int
	for _, thread := range threads {
		text, err := os.ReadFile("/proc/self/task/" + thread.Name() + "/children")
		if err != nil {
			continue // the thread has ended
		}
		for _, child := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(child); err == nil && pid != main {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// bury takes leave of the orphans that have ended, so that their numbers are free.
func bury(main int) {
	for _, pid := range orphans(main) {
		_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // it may run on
	}
}

// killOrphans ends what the module has left behind, and what comes from under that.
func killOrphans() {
	for end := time.Now().Add(orphansTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		left := orphans(0)
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // ours until we wait for it: the number is no other's
		}
		bury(0)
	}
}
