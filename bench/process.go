package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
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

// processorTime is how long the process has had processors, of its own and in the
// kernel (proc(5), fields 14 and 15 of stat, in hundredths of a second).
func processorTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The program's name, the second field, may hold spaces; it ends with the last bracket.
	fields := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("the status of process %d is %q", pid, b)
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("the times of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
