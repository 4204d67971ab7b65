//go:build !linux

package environment

import (
	"errors"
	"os"
)

// syncFileSystem writes the directory to disk; elsewhere than on Linux, where
// environments run, there is no call for all that is in it.
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
