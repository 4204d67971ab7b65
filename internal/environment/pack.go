package environment

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// epoch is the time of all files in an environment.
var epoch = time.Unix(0, 0).UTC()

// Pack writes the tree at dir as a tar file: sorted by path, with one time and owner for
// all, and of modes only whether it may be executed. Invalid for what cannot travel:
// links out of the tree, devices, pipes.
func Pack(w io.Writer, dir string) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return atelier.Errorf(atelier.Invalid, "read the environment: %w", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	out := tar.NewWriter(w)
	// WalkDir goes through each directory in the order of names.
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		if err := checkPath(path); err != nil {
			return err
		}
		return packOne(out, root, path, d)
	})
	if err != nil {
		return atelier.Errorf(atelier.Invalid, "pack the environment: %w", err)
	}
	if err := out.Close(); err != nil {
		return atelier.Errorf(atelier.Internal, "pack the environment: %w", err)
	}
	return nil
}

func packOne(out *tar.Writer, root *os.Root, path string, d fs.DirEntry) (err error) {
	info, err := d.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: path, ModTime: epoch, Format: tar.FormatPAX, Mode: 0o644}
	switch {
	case info.Mode().IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
		if info.Mode()&0o111 != 0 {
			h.Mode = 0o755
		}
	case info.IsDir():
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, path+"/", 0o755
	case info.Mode()&fs.ModeSymlink != 0:
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		if h.Linkname, err = root.Readlink(filepath.FromSlash(path)); err != nil {
			return err
		}
		if err := checkLink(path, h.Linkname); err != nil {
			return err
		}
	default:
		return atelier.Errorf(atelier.Invalid, "%.120q is neither a file, a directory nor a link", path)
	}
	if err := out.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	in, err := root.Open(filepath.FromSlash(path))
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, in.Close())
}
