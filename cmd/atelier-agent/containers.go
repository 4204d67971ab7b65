package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent"
	"github.com/atelier-edge/atelier/targets/driver"
)

// containersOf returns the target that runs container images, nil where this machine has not
// what it needs. containerd need not run yet.
func containersOf(p agent.Places) *driver.Client {
	const kind = atelier.TargetContainerd
	program := p.Driver(kind)
	if os.Geteuid() != 0 || !isFile(program) || !isFile(filepath.Join(p.Programs, "atelier-keep")) {
		return nil
	}
	if _, err := os.Stat(p.Containers.Address); err != nil && !installed("containerd") {
		return nil
	}
	c := p.Containers
	dir, socket := p.Instances(kind), p.DriverSocket(kind)
	args := []string{
		"--socket", socket, "--dir", dir, "--run", filepath.Join(p.Run, kind), "--address", c.Address, "--namespace", c.Namespace,
		"--reserve", strconv.FormatInt(p.Reserve, 10), "--private", p.State, "--private", p.Run,
	}
	if c.Snapshotter != "" {
		args = append(args, "--snapshotter", c.Snapshotter)
	}
	return driver.New(driver.Options{
		Kind: kind, Program: program, Args: args, Socket: socket, Dir: dir, Log: p.DriverLog(kind), Version: version, Logger: slog.Default(),
	})
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// installed reports whether a program is there, also one that is for root.
func installed(program string) bool {
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/bin", "/usr/local/bin") {
		if isFile(filepath.Join(dir, program)) {
			return true
		}
	}
	return false
}
