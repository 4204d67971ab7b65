package e2e

import (
	"os/exec"
	"strings"
	"sync"
)

// debianPython returns the version of Python that the machine's Debian has, which is
// what a builder here can build with.
var debianPython = sync.OnceValue(func() string {
	out, err := exec.Command("apt-cache", "depends", "python3-minimal").Output()
	if err != nil {
		return "3.11" // the script that builds says what is missing
	}
	_, rest, _ := strings.Cut(string(out), "python3.")
	minor, _, _ := strings.Cut(rest, "-")
	return "3." + strings.TrimSpace(minor)
})
