package containerd

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
)

// Bounds of what an image may be.
const (
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	// A layer may unpack to as much as it likes up to freeBytes, and from there to maxRatio times
	// its size: more is in no layer that somebody made for use.
	freeBytes  = 256 << 20
	maxRatio   = 200
	maxEntries = 1 << 20
)

// image is an image that was read and is what its digests say, but for its layers.
type image struct {
	config ocispec.Image
	layers []targets.Blob
}

// bad returns the error for an image that cannot be run anywhere.
func bad(img *targets.Image, format string, args ...any) *atelier.Error {
	return atelier.Errorf(atelier.Corrupt, "the image %s cannot be run: %w", img.Reference, fmt.Errorf(format, args...)).
		WithRemedy("Build and push the image again.")
}

// readImage reads manifest and configuration, and checks that all of it fits together.
func readImage(img *targets.Image) (*image, error) {
	manifestBytes, err := readBlob(img, "manifest", img.Manifest, maxManifest)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifestBytes, &m); err != nil {
		return nil, bad(img, "its manifest cannot be read: %w", err)
	}
	if err := matches(img, "configuration", m.Config, img.Config); err != nil {
		return nil, err
	}
	if len(m.Layers) != len(img.Layers) {
		return nil, bad(img, "its manifest names %d layers, and %d were sent", len(m.Layers), len(img.Layers))
	}
	for i, d := range m.Layers {
		if err := matches(img, fmt.Sprintf("layer %d", i+1), d, img.Layers[i]); err != nil {
			return nil, err
		}
	}
	configBytes, err := readBlob(img, "configuration", img.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	read := &image{layers: img.Layers}
	if err := json.Unmarshal(configBytes, &read.config); err != nil {
		return nil, bad(img, "its configuration cannot be read: %w", err)
	}
	c := &read.config
	if c.Architecture != runtime.GOARCH || c.OS != runtime.GOOS {
		return nil, atelier.Errorf(atelier.Unsupported, "the image %s is made for %.40s/%.40s, and this device is %s/%s", img.Reference, c.OS, c.Architecture, runtime.GOOS, runtime.GOARCH).
			WithRemedy("Push an image for %s/%s, or an index that has one, and deploy it again.", runtime.GOOS, runtime.GOARCH)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, bad(img, "its configuration tells of %d layers, and its manifest of %d", len(c.RootFS.DiffIDs), len(m.Layers))
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return nil, bad(img, "its configuration names a layer %.100q, which is no SHA-256 digest", string(d))
		}
	}
	return read, nil
}

// matches checks that what was sent is what the manifest names.
func matches(img *targets.Image, what string, d ocispec.Descriptor, sent targets.Blob) error {
	if string(d.Digest) != string(sent.Digest) || d.Size != sent.Size {
		return bad(img, "its manifest says that its %s is %.100s with %d bytes, and %s with %d bytes was sent", what, string(d.Digest), d.Size, sent.Digest, sent.Size)
	}
	info, err := os.Stat(sent.Path)
	if err != nil {
		return atelier.Errorf(atelier.NotFound, "the %s of image %s is not on the device: %w", what, img.Reference, err)
	}
	if info.Size() != d.Size {
		return bad(img, "its manifest says that its %s has %d bytes, and it has %d", what, d.Size, info.Size())
	}
	return nil
}

// readBlob reads a small part of an image and checks its digest.
func readBlob(img *targets.Image, what string, b targets.Blob, most int64) ([]byte, error) {
	f, err := os.Open(b.Path)
	if err != nil {
		return nil, atelier.Errorf(atelier.NotFound, "the %s of image %s is not on the device: %w", what, img.Reference, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, atelier.Errorf(atelier.Internal, "read the %s of image %s: %w", what, img.Reference, err)
	case int64(len(data)) > most:
		return nil, bad(img, "its %s has more than %s", what, atelier.FormatBytes(most))
	case atelier.DigestOf(data) != b.Digest:
		return nil, bad(img, "its %s is not what its digest says", what)
	}
	return data, nil
}

// unpack makes the snapshots of an image's layers, those that are not there, and returns the
// key of the uppermost. ctx has a lease, which holds them until a container does.
func (t *Target) unpack(ctx context.Context, img *targets.Image, read *image) (parent string, err error) {
	t.unpacking.Lock() // one image at a time: that is what a small device bears
	defer t.unpacking.Unlock()
	sn := t.client.SnapshotService(t.snapshotter)
	for i, layer := range read.layers {
		diffs := read.config.RootFS.DiffIDs[:i+1]
		chain := identity.ChainID(diffs).String()
		// Held before it is looked at: containerd may be collecting it.
		if err := t.hold(ctx, chain); err != nil {
			return "", err
		}
		if _, err := sn.Stat(ctx, chain); err == nil {
			parent = chain
			continue
		} else if !errdefs.IsNotFound(err) {
			return "", explain(err, "look at a layer")
		}
		if err := t.unpackLayer(ctx, sn, img, layer, diffs[i], parent, chain); err != nil {
			return "", err
		}
		parent = chain
	}
	return parent, nil
}

// unpackLayer makes the snapshot chain of a layer over parent.
func (t *Target) unpackLayer(ctx context.Context, sn snapshots.Snapshotter, img *targets.Image, layer targets.Blob, diff digest.Digest, parent, chain string) (err error) {
	key := "unpack-" + atelier.NewID()
	mounts, err := sn.Prepare(ctx, key, parent)
	if err != nil {
		return explain(err, "begin to unpack a layer")
	}
	defer func() {
		if err != nil {
			_ = sn.Remove(context.WithoutCancel(ctx), key) // the lease lets go of it, too
		}
	}()
	err = mount.WithTempMount(ctx, mounts, func(root string) error { return apply(ctx, img, layer, diff, root, t.reserve) })
	if err != nil {
		var known *atelier.Error
		if errors.As(err, &known) {
			return known
		}
		return atelier.Errorf(atelier.Internal, "unpack a layer of image %s: %w", img.Reference, err)
	}
	if err := sn.Commit(ctx, chain, key); err != nil && !errdefs.IsAlreadyExists(err) {
		return explain(err, "finish a layer")
	}
	return nil
}

// apply unpacks a layer into root. Nothing of it may climb out, and it must be what its digest
// and the image's configuration say.
func apply(ctx context.Context, img *targets.Image, layer targets.Blob, diff digest.Digest, root string, reserve int64) error {
	f, err := os.Open(layer.Path)
	if err != nil {
		return atelier.Errorf(atelier.NotFound, "the layer %s of image %s is not on the device: %w", layer.Digest, img.Reference, err)
	}
	defer f.Close()
	packed := sha256.New()
	compressed := bufio.NewReaderSize(io.TeeReader(f, packed), 256<<10)
	stream, err := decompress(compressed)
	if err != nil {
		return bad(img, "its layer %s cannot be unpacked: %w", layer.Digest, err)
	}
	defer stream.Close()
	unpacked := &counted{ctx: ctx, img: img, layer: layer, root: root, reserve: reserve, from: stream, hash: sha256.New()}
	_, err = archive.Apply(ctx, root, unpacked, archive.WithFilter(unpacked.filter))
	if err == nil {
		_, err = io.Copy(io.Discard, unpacked) // what follows the archive's end counts too
	}
	if err == nil {
		_, err = io.Copy(io.Discard, compressed)
	}
	switch {
	case unpacked.err != nil:
		return unpacked.err // archive.Apply wraps it in words of its own
	case ctx.Err() != nil:
		return atelier.Errorf(atelier.Timeout, "unpacking a layer of image %s was given up: %w", img.Reference, ctx.Err())
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return noRoom(img)
	case hex.EncodeToString(packed.Sum(nil)) != layer.Digest.Hex() && err == nil:
		return bad(img, "its layer %s is not what its digest says", layer.Digest)
	case err != nil:
		return bad(img, "its layer %s cannot be unpacked: %w", layer.Digest, err)
	case hex.EncodeToString(unpacked.hash.Sum(nil)) != diff.Encoded():
		return bad(img, "its layer %s does not unpack to %s, which its configuration names", layer.Digest, diff)
	}
	return syncFiles(root)
}

// decompress reads what a layer is a tar archive of: gzip, zstd, or itself.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(10)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch compression.DetectCompression(head) {
	case compression.Gzip:
		return gzip.NewReader(r)
	case compression.Zstd:
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(zstdMemory))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// zstdMemory bounds what a layer may make its decoder take.
const zstdMemory = 128 << 20

// syncFiles brings what was unpacked onto the disk, before a name says that it is there.
func syncFiles(root string) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

func noRoom(img *targets.Image) error {
	return atelier.Errorf(atelier.NoSpace, "the disk has no room for what the image %s unpacks to", img.Reference).
		WithRemedy("Make room on the device, or deploy a smaller image.")
}

// counted reads what a layer unpacks to, and ends where that is more than it may be.
type counted struct {
	ctx     context.Context
	img     *targets.Image
	layer   targets.Blob
	root    string
	reserve int64
	from    io.Reader
	hash    hash.Hash
	read    int64
	looked  int64 // bytes that were read when the disk was looked at
	entries int
	err     error
}

// lookEvery is after how many bytes the disk is looked at.
const lookEvery = 16 << 20

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.from.Read(p)
	_, _ = c.hash.Write(p[:n]) // it never fails
	c.read += int64(n)
	if c.read > freeBytes && c.read/maxRatio > c.layer.Size {
		c.err = bad(c.img, "its layer %s, with %s, unpacks to more than %s", c.layer.Digest, atelier.FormatBytes(c.layer.Size), atelier.FormatBytes(c.read))
		return n, c.err
	}
	if c.looked == 0 || c.read-c.looked >= lookEvery {
		c.looked = c.read
		var s unix.Statfs_t
		if unix.Statfs(c.root, &s) == nil && (int64(s.Bavail)*s.Bsize < c.reserve || s.Files > 0 && s.Ffree < s.Files/50) {
			c.err = noRoom(c.img)
			return n, c.err
		}
	}
	return n, err
}

// filter looks at each entry of the layer.
func (c *counted) filter(h *tar.Header) (bool, error) {
	if c.entries++; c.entries > maxEntries {
		c.err = bad(c.img, "its layer %s has more than %d files", c.layer.Digest, maxEntries)
		return false, c.err
	}
	// The zeros of a sparse file are made, not read: nothing would bound them.
	sparse := h.Typeflag == tar.TypeGNUSparse
	for key := range h.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
	}
	if sparse {
		c.err = bad(c.img, "its layer %s has a sparse file %.200q", c.layer.Digest, h.Name)
		return false, c.err
	}
	names := []string{h.Name}
	if h.Typeflag == tar.TypeLink {
		names = append(names, h.Linkname)
	}
	for _, name := range names {
		if clean := path.Clean(name); clean == ".." || strings.HasPrefix(clean, "../") {
			c.err = bad(c.img, "its layer %s has a file %.200q, which climbs out of it", c.layer.Digest, name)
			return false, c.err
		}
	}
	return true, nil
}
