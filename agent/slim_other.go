//go:build !linux

package agent

// releaseProgram does nothing where the kernel cannot be told.
func releaseProgram() {}
