package main

import (
	"bufio"
	"bytes"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
)

// processors returns how many processors' worth of time the process may use: those
// that it may run on, or less where a control group bounds it.
func processors() int { return min(runtime.NumCPU(), allowed(os.DirFS("/"))) }

// allowed returns how many whole processors the process's control groups allow, 1 at
// least; a very large number where they set no bound. root is the file system.
func allowed(root fs.FS) int {
	least := math.Inf(1)
	own, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return math.MaxInt32
	}
	// A line is ID:CONTROLLERS:PATH; cgroups(7). Where the path is of another namespace
	// than the mount, the root alone is there.
	for lines := bufio.NewScanner(bytes.NewReader(own)); lines.Scan(); {
		parts := strings.SplitN(lines.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		mounts, quota := []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"}, ofMax
		if parts[1] != "" {
			if !strings.Contains(","+parts[1]+",", ",cpu,") {
				continue
			}
			mounts, quota = []string{"sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"}, ofQuota
		}
		for _, mount := range mounts {
			for dir := path.Clean("/" + parts[2]); ; dir = path.Dir(dir) {
				least = math.Min(least, quota(root, path.Join(mount, dir)))
				if dir == "/" {
					break
				}
			}
		}
	}
	if least > math.MaxInt32 {
		return math.MaxInt32
	}
	return max(1, int(least)) // a thread more than there is time for makes all wait
}

// ofMax reads the bound of a group of version 2, in processors.
func ofMax(root fs.FS, dir string) float64 {
	b, err := fs.ReadFile(root, path.Join(dir, "cpu.max"))
	if err != nil {
		return math.Inf(1)
	}
	quota, period, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	return ratio(quota, period)
}

// ofQuota reads that of a group of version 1.
func ofQuota(root fs.FS, dir string) float64 {
	quota, err := fs.ReadFile(root, path.Join(dir, "cpu.cfs_quota_us"))
	if err != nil {
		return math.Inf(1)
	}
	period, err := fs.ReadFile(root, path.Join(dir, "cpu.cfs_period_us"))
	if err != nil {
		return math.Inf(1)
	}
	return ratio(strings.TrimSpace(string(quota)), strings.TrimSpace(string(period)))
}

// ratio returns quota / period, infinite where one of them is no positive number:
// "max" and -1 are no bound.
func ratio(quota, period string) float64 {
	q, err := strconv.ParseInt(quota, 10, 64)
	p, periodErr := strconv.ParseInt(period, 10, 64)
	if err != nil || periodErr != nil || q <= 0 || p <= 0 {
		return math.Inf(1)
	}
	return float64(q) / float64(p)
}
