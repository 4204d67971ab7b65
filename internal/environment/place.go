package environment

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	slashpath "path"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// Place writes the environment that the tar file from r holds as a tar file whose files
// lie below dir, a path in the form that those of environments have, with the
// directories that lead there. It writes the same bytes for the same environment, as it
// reads them, and checks what Unpack checks: Corrupt where the file is none that Pack
// writes.
func Place(ctx context.Context, w io.Writer, r io.Reader, dir string) error {
	if err := checkPath(dir); err != nil {
		return err
	}
	p := placing{out: tar.NewWriter(w), dir: dir, directories: map[string]bool{".": true}, seen: map[string]bool{}}
	for i := range dir + "/" {
		if i > 0 && (dir + "/")[i] == '/' {
			if err := p.out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[:i] + "/", Mode: 0o755, ModTime: epoch, Format: tar.FormatPAX}); err != nil {
				return err
			}
		}
	}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return p.out.Close()
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return damaged(err)
		}
		if err := p.one(in, h); err != nil {
			return err
		}
	}
}

// placing is one environment as it is placed.
type placing struct {
	out         *tar.Writer
	dir         string
	directories map[string]bool // that came; links are none
	seen        map[string]bool
	size        int64
}

func (p *placing) one(in *tar.Reader, h *tar.Header) error {
	path := h.Name
	if h.Typeflag == tar.TypeDir {
		path = strings.TrimSuffix(path, "/")
	}
	if err := checkPath(path); err != nil {
		return err
	}
	if !p.directories[slashpath.Dir(path)] || p.seen[path] {
		return atelier.Errorf(atelier.Corrupt, "the environment has a file %.120q twice, before its directory, or in what is none", path)
	}
	if p.seen[path] = true; len(p.seen) > maxEntries {
		return atelier.Errorf(atelier.TooLarge, "the environment has more than %d files", maxEntries)
	}
	out := &tar.Header{Typeflag: h.Typeflag, Name: p.dir + "/" + path, Mode: 0o644, ModTime: epoch, Format: tar.FormatPAX}
	switch h.Typeflag {
	case tar.TypeDir:
		p.directories[path] = true
		out.Name, out.Mode = out.Name+"/", 0o755
		return p.out.WriteHeader(out)
	case tar.TypeSymlink:
		if err := checkLink(path, h.Linkname); err != nil {
			return err
		}
		out.Linkname, out.Mode = h.Linkname, 0o777
		return p.out.WriteHeader(out)
	case tar.TypeReg:
	default:
		return atelier.Errorf(atelier.Corrupt, "the environment has an entry %.120q of type %q, which is neither a file, a directory nor a link", path, h.Typeflag)
	}
	if p.size += h.Size; h.Size < 0 || p.size > maxSize {
		return atelier.Errorf(atelier.TooLarge, "the environment's files have more than %s", atelier.FormatBytes(maxSize))
	}
	if h.Mode&0o111 != 0 {
		out.Mode = 0o755
	}
	out.Size = h.Size
	if err := p.out.WriteHeader(out); err != nil {
		return err
	}
	from := &source{r: in}
	_, err := io.Copy(p.out, from)
	if from.err != nil {
		return damaged(from.err)
	}
	return err
}
