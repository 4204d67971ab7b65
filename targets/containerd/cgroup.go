package containerd

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/atelier-edge/atelier/targets"
)

const cgroups = "/sys/fs/cgroup"

// unified reports whether the machine has control groups of version 2 only.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers"))
	return err == nil
}

// exists reports whether a file of the control groups is there.
func exists(name string) bool {
	_, err := os.Stat(filepath.Join(cgroups, name))
	return err == nil
}

// resources returns the limits of an instance.
func resources(spec *targets.Spec, processes int64) *specs.LinuxResources {
	r := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &processes}}
	if limit := spec.Limits.Memory; limit > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &limit}
		if unified() || exists("memory/memory.memsw.limit_in_bytes") {
			r.Memory.Swap = &limit // of memory and swap together: none
		}
		if unified() {
			r.Unified = map[string]string{"memory.oom.group": "1"}
		}
	}
	if cpus := spec.Limits.CPUs; cpus > 0 {
		period := uint64(100_000)
		quota := max(int64(cpus*float64(period)), 1000)
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	return r
}

// outOfMemory reports whether the kernel has killed a process of the control group for want
// of memory. The group stays until the container's task is deleted.
func outOfMemory(group string) bool {
	for _, name := range []string{
		filepath.Join(cgroups, "memory", group, "memory.oom_control"),
		filepath.Join(cgroups, group, "memory.events"),
	} {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
			if value, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
				n, err := strconv.ParseInt(value, 10, 64)
				return err == nil && n > 0
			}
		}
	}
	return false
}
