package environment

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncFileSystem writes to disk all that the file system which holds dir has in memory.
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
