// Command atelier-shim runs the one process that DIR/spec.json describes, keeps
// its log and its limits, and writes DIR/status.json. It is started by
// atelier-agent and outlives it; people have no need to call it.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/atelier-edge/atelier/targets/process"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: atelier-shim DIR")
		os.Exit(2)
	}
	debug.SetGCPercent(20) // it lives long, allocates little and shall stay small
	if err := process.Hold(os.Args[1], ready); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// ready tells the agent, which reads the standard output, that the process runs.
func ready() {
	// The agent may be gone; the module runs all the same.
	_, _ = os.Stdout.WriteString(process.Ready)
	_ = os.Stdout.Close()
	debug.FreeOSMemory()
}
