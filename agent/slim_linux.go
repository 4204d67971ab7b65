package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// releaseProgram lets the kernel have the pages of the program's own file back
// that are mapped and never written to: its code and its constants. What runs
// again is mapped again, from the page cache. Most of it, TLS handshakes and the
// start above all, is not needed while the agent waits. Where that does not work,
// the agent is merely larger.
func releaseProgram() {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer func() { _ = maps.Close() }() // only read from
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if from, to, ok := unwritten(lines.Bytes(), path); ok {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED) // see above for where it fails
		}
	}
}

// unwritten reads a line of proc(5)'s maps, and reports whether it is a mapping
// of the file at path that cannot have been written to.
func unwritten(line []byte, path string) (from, to uintptr, ok bool) {
	fields := bytes.Fields(line)
	if len(fields) != 6 || string(fields[5]) != path {
		return 0, 0, false
	}
	if mode := string(fields[1]); mode != "r-xp" && mode != "r--p" {
		return 0, 0, false
	}
	if n, err := fmt.Sscanf(string(fields[0]), "%x-%x", &from, &to); n != 2 || err != nil || to <= from {
		return 0, 0, false
	}
	return from, to, true
}
