// Package facts finds out what a device is and what it can run, without
// starting anything and without being told.
package facts

import (
	"bytes"
	"io/fs"
	"os"
	"runtime"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
)

// Features are the optional parts of the wire protocol that this agent
// understands: what DesiredState.Requires may name.
var Features = []string{
	atelier.FeatureCollect, atelier.FeatureGolden, atelier.FeatureGoldenScripts, atelier.FeatureMessages, atelier.FeaturePacked, atelier.FeaturePredictors, atelier.FeaturePython, atelier.FeatureServer, atelier.FeatureServing,
	atelier.FeatureStage, atelier.FeatureTrial,
}

// Options say what to look at.
type Options struct {
	// Root is the device's file system, os.DirFS("/") outside of tests.
	Root fs.FS
	// Targets are the kinds of targets that the agent knows.
	Targets []string
}

// Read returns the facts that do not change while the agent runs. DiskFree and
// Gateway are for the caller to fill in.
func Read(o Options) atelier.Facts {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "" // a fact that cannot be found out is left out
	}
	return atelier.Facts{
		OS: runtime.GOOS, Arch: runtime.GOARCH, Kernel: line(o.Root, "proc/sys/kernel/osrelease"), Hostname: hostname,
		CPUs: runtime.NumCPU(), Memory: meminfo(o.Root, "MemTotal"), Targets: o.Targets,
		Runtimes: []atelier.RuntimeSupport{onnxRuntime(o.Root, runtime.GOOS, runtime.GOARCH)},
		Features: Features, Glibc: glibc(o.Root, runtime.GOARCH),
	}
}

// line returns a file's content without the newline, "" where there is none.
func line(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

// Available returns how much memory programs can still get, in bytes, swap
// included; 0 where that is unknown.
func Available(root fs.FS) int64 {
	return meminfo(root, "MemAvailable") + meminfo(root, "SwapFree")
}

// meminfo returns a figure of /proc/meminfo in bytes, 0 where it is not there.
// The format is in proc(5).
func meminfo(root fs.FS, figure string) int64 {
	b, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for l := range bytes.Lines(b) {
		value, ok := bytes.CutPrefix(l, []byte(figure+":"))
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
		if err != nil {
			return 0
		}
		return kib << 10
	}
	return 0
}
