package process

import (
	"bytes"
	"os"
	"strconv"
	"strings"
)

// treeMemory returns the bytes of memory that process pid and its descendants
// hold: anonymous and shared memory. Pages of mapped files are not counted, since
// the kernel can drop them. What ended meanwhile counts nothing.
func treeMemory(pid int) int64 {
	dir := "/proc/" + strconv.Itoa(pid)
	total := ownMemory(dir)
	threads, err := os.ReadDir(dir + "/task")
	if err != nil {
		return total
	}
	for _, thread := range threads {
		children, err := os.ReadFile(dir + "/task/" + thread.Name() + "/children")
		if err != nil {
			continue
		}
		for _, child := range strings.Fields(string(children)) {
			if id, err := strconv.Atoi(child); err == nil {
				total += treeMemory(id)
			}
		}
	}
	return total
}

// ownMemory reads RssAnon and RssShmem, in KiB there, of the process whose
// directory in /proc is dir. See proc(5), status.
func ownMemory(dir string) int64 {
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return 0
	}
	return 1024 * (number(status, "\nRssAnon:") + number(status, "\nRssShmem:"))
}

// oomKills returns how many processes the kernel has ended for want of memory
// since boot; 0 where it does not tell (before Linux 4.13).
func oomKills() uint64 {
	stat, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	return uint64(number(stat, "\noom_kill "))
}

// number returns the decimal number that follows key in text, 0 where there is none.
func number(text []byte, key string) int64 {
	_, rest, ok := bytes.Cut(text, []byte(key))
	if !ok {
		return 0
	}
	rest = bytes.TrimLeft(rest, " \t")
	end := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	n, err := strconv.ParseInt(string(rest[:end]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
