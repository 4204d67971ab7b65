package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// memory is what /proc/PID/status tells of a process, in bytes.
type memory struct {
	resident  float64 // VmRSS
	anonymous float64 // RssAnon: heap and stacks, without the pages of the program's file
	peak      float64 // VmHWM, since the last resetPeak
}

func memoryOf(pid int) (memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	var m memory
	wanted := map[string]*float64{"VmRSS": &m.resident, "RssAnon": &m.anonymous, "VmHWM": &m.peak}
	for line := range strings.SplitSeq(string(b), "\n") {
		name, value, _ := strings.Cut(line, ":")
		into, ok := wanted[name]
		if !ok {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 64)
		if err != nil {
			return memory{}, fmt.Errorf("%s of process %d: %w", name, pid, err)
		}
		*into = kib * 1024
		delete(wanted, name)
	}
	if len(wanted) > 0 {
		return memory{}, fmt.Errorf("the status of process %d lacks some of VmRSS, RssAnon and VmHWM", pid)
	}
	return m, nil
}

// resetPeak lets VmHWM begin anew (proc(5), clear_refs).
func resetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}
