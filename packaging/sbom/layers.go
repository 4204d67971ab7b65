package sbom

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	atelier "github.com/atelier-edge/atelier"
)

// How far layers are unpacked and records are read.
const (
	// A layer may unpack to so many times its size, and to spareUnpacked whatever its size.
	maxRatio      = 200
	spareUnpacked = 1 << 30
	maxEntries    = 2 << 20 // of all layers
	maxRecords    = 20000   // that package managers left, of all layers
	maxStatus     = 64 << 20
	maxMetadata   = 1 << 20
	maxWindow     = 128 << 20 // of zstd
)

// Contents is what the layers of an image contain, as far as they were added.
// The zero value is an image without layers.
type Contents struct {
	records map[string][]Package // by the path of the package manager's record
	distro  map[string]string    // by the path of the file that says it
	entries int
	found   int // packages that were read, hidden ones included
}

// AddLayer adds the next layer, a tar archive that may be compressed with gzip or zstd.
// Invalid where it is none, TooLarge where it unpacks to far more than an honest one.
func (c *Contents) AddLayer(ctx context.Context, layer io.ReaderAt, size int64) error {
	if c.records == nil {
		c.records, c.distro = map[string][]Package{}, map[string]string{}
	}
	r, end, err := unpack(ctx, layer, size)
	if err != nil {
		return err
	}
	defer end()
	found := Contents{records: map[string][]Package{}, distro: map[string]string{}}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errLayer(err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.entries++; c.entries > maxEntries {
			return atelier.Errorf(atelier.TooLarge, "the image has more than %d files", maxEntries)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if hidden, ok := strings.CutPrefix(path.Base(name), ".wh."); ok {
			c.hide(path.Dir(name), hidden)
			continue
		}
		if h.Typeflag == tar.TypeReg {
			if err := found.record(name, archive); err != nil {
				return errLayer(err)
			}
		}
	}
	maps.Copy(c.records, found.records)
	maps.Copy(c.distro, found.distro)
	if c.packages() > maxRecords {
		return atelier.Errorf(atelier.TooLarge, "the image has more than %d packages", maxRecords)
	}
	return nil
}

// packages is how many there are, counting each record as one at least.
func (c *Contents) packages() (n int) {
	for _, list := range c.records {
		n += max(1, len(list))
	}
	return n
}

// hide takes away what a layer hides of those below it: one name in a directory, or all
// of it where the directory is opaque.
func (c *Contents) hide(dir, name string) {
	prefix := strings.TrimPrefix(dir+"/", "./")
	gone := func(p string) bool { return p == prefix+name || strings.HasPrefix(p, prefix+name+"/") }
	if name == ".wh..opq" {
		gone = func(p string) bool { return strings.HasPrefix(p, prefix) }
	}
	maps.DeleteFunc(c.records, func(p string, _ []Package) bool { return gone(p) })
	maps.DeleteFunc(c.distro, func(p, _ string) bool { return gone(p) })
}

// record reads a file if a package manager keeps its record in it.
func (c *Contents) record(name string, r io.Reader) error {
	dir, base := path.Split(name)
	read := func(limit int64, parse func([]byte) []Package) error {
		b, err := io.ReadAll(io.LimitReader(r, limit+1))
		if err != nil {
			return err
		}
		if int64(len(b)) > limit {
			return atelier.Errorf(atelier.TooLarge, "the file %.300s in it has more than %d bytes", name, limit)
		}
		list := parse(b)
		if c.found += max(1, len(list)); c.found > maxRecords {
			return atelier.Errorf(atelier.TooLarge, "it has more than %d packages", maxRecords)
		}
		c.records[name] = list
		return nil
	}
	switch {
	case base == "METADATA" && strings.HasSuffix(dir, ".dist-info/"), base == "PKG-INFO" && strings.HasSuffix(dir, ".egg-info/"):
		return read(maxMetadata, parsePython)
	case name == "var/lib/dpkg/status":
		return read(maxStatus, parseDebian)
	case dir == "var/lib/dpkg/status.d/" && !strings.HasSuffix(base, ".md5sums"): // images without a shell have one file for each
		return read(maxMetadata, parseDebian)
	case name == "lib/apk/db/installed" || name == "usr/lib/apk/db/installed":
		return read(maxStatus, parseAlpine)
	case name == "etc/os-release" || name == "usr/lib/os-release":
		b, err := io.ReadAll(io.LimitReader(r, maxMetadata))
		c.distro[name] = osRelease(b)
		return err
	}
	return nil
}

// Packages returns what was found, each once, in the order of kinds, names and versions.
func (c *Contents) Packages() []Package {
	distro := ""
	for _, name := range []string{"usr/lib/os-release", "etc/os-release"} {
		if d := c.distro[name]; d != "" {
			distro = d
		}
	}
	var all []Package
	for _, name := range slices.Sorted(maps.Keys(c.records)) {
		for _, p := range c.records[name] {
			if p.Kind == Debian || p.Kind == Alpine {
				p.Distro = distro
				if distro == "" {
					p.Distro = string(p.Kind)
				}
			}
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b Package) int {
		return strings.Compare(a.key(), b.key())
	})
	return slices.CompactFunc(all, func(a, b Package) bool { return a.key() == b.key() })
}

func (p *Package) key() string {
	return strings.Join([]string{string(p.Kind), p.Name, p.Version, p.Arch, p.Digest}, "\x00")
}

// unpack returns what a layer unpacks to, whatever it is compressed with.
func unpack(ctx context.Context, layer io.ReaderAt, size int64) (r io.Reader, end func(), err error) {
	plain := io.NewSectionReader(layer, 0, size)
	magic := make([]byte, 4)
	n, err := plain.ReadAt(magic, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, atelier.Errorf(atelier.Internal, "read a layer: %w", err)
	}
	magic = magic[:n]
	bounded := func(r io.Reader) io.Reader {
		return &bound{ctx: ctx, from: r, left: size*maxRatio + spareUnpacked}
	}
	end = func() {}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		g, err := gzip.NewReader(bufio.NewReaderSize(plain, 64<<10))
		if err != nil {
			return nil, nil, errLayer(err)
		}
		return bounded(g), end, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(2*maxWindow))
		if err != nil {
			return nil, nil, errLayer(err)
		}
		return bounded(z), z.Close, nil
	}
	return plain, end, nil // whose unread files are passed over without being read
}

// bound ends reading where too much came.
type bound struct {
	ctx  context.Context
	from io.Reader
	left int64
}

func (b *bound) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.from.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, atelier.Errorf(atelier.TooLarge, "it unpacks to more than %d times its size", maxRatio)
	}
	return n, err
}

// errLayer says why a layer could not be read.
func errLayer(err error) error {
	var e *atelier.Error
	switch {
	case errors.As(err, &e):
		return atelier.Errorf(e.Code, "a layer of the image cannot be read: %s", e.Message)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return atelier.Errorf(atelier.Invalid, "a layer of the image is no tar archive: %w", err)
}
