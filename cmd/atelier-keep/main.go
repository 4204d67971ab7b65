// Command atelier-keep stands beside each container that atelier-driver-containerd runs, and
// is process 1 in it. It is not meant to be started by people.
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/atelier-edge/atelier/targets/containerd/keep"
)

func main() {
	runtime.MemProfileRate = 0
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "hold":
		if err := keep.Hold(args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "atelier-keep:", err)
			os.Exit(1)
		}
	case len(args) >= 2 && args[0] == "init":
		os.Exit(keep.Init(keep.StartedInside, args[1:]))
	default:
		fmt.Fprintln(os.Stderr, "atelier-keep is started by atelier-driver-containerd")
		os.Exit(2)
	}
}
