//go:build linux

// Package kernelsim is a file system that behaves as a kernel with an FPGA manager does:
// /sys/class/fpga_manager/fpga0 and a window into the device, with the kernel's errnos,
// behind which a simulated board is. Drivers use it through FUSE as they use the real one.
//
// It follows drivers/fpga/fpga-mgr.c: state_str for the words of `state`, firmware_store
// for what writing `firmware` does, flags_store for `flags`, which are of the vendor's
// kernel. Without Vendor there is what mainline has. Mounting takes root (or
// CAP_SYS_ADMIN) and /dev/fuse.
package kernelsim

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/atelier-edge/atelier/fpga/board"
)

// nameMax is the size of the buffer that firmware_store copies a name into.
const nameMax = 255

// Options say what the kernel is like.
type Options struct {
	Board *board.Board
	// Firmware is the directory in which the kernel looks for images.
	Firmware string
	// Vendor has `firmware`, `flags` and `key`.
	Vendor bool
}

// Kernel is a mounted file system.
type Kernel struct {
	// Class is the FPGA manager's directory, and Window the overlay's address space: a file
	// to be read and written at offsets.
	Class, Window string

	options Options
	server  *fuse.Server

	mu    sync.Mutex
	state string
	flags int64
	oops  bool
}

// Mount mounts a kernel's files at dir, an empty directory.
func Mount(dir string, o Options) (*Kernel, error) {
	k := &Kernel{options: o, state: "power up", Class: filepath.Join(dir, "fpga_manager", "fpga0"), Window: filepath.Join(dir, "overlay0")}
	var err error
	k.server, err = fs.Mount(dir, &directory{build: k.root}, &fs.Options{MountOptions: fuse.MountOptions{FsName: "kernelsim", DirectMount: true}})
	return k, err
}

// Close unmounts the files. Whatever hangs must be released before.
func (k *Kernel) Close() error { return k.server.Unmount() }

// Oops reports whether something happened that a real kernel does not survive.
func (k *Kernel) Oops() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.oops
}

func (k *Kernel) set(state string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state = state
}

func (k *Kernel) root(ctx context.Context, d *directory) {
	d.add(ctx, "overlay0", &window{board: k.options.Board}, syscall.S_IFREG)
	class := &directory{build: func(ctx context.Context, d *directory) {
		d.add(ctx, "fpga0", &directory{build: k.class}, syscall.S_IFDIR)
	}}
	d.add(ctx, "fpga_manager", class, syscall.S_IFDIR)
}

func (k *Kernel) class(ctx context.Context, d *directory) {
	fixed := func(text string) func() string { return func() string { return text } }
	attributes := map[string]*attribute{
		"name": {mode: 0o444, show: fixed("Simulated FPGA Manager\n")}, "status": {mode: 0o444, show: fixed("")},
		"state": {mode: 0o444, show: func() string {
			k.mu.Lock()
			defer k.mu.Unlock()
			return k.state + "\n"
		}},
	}
	if k.options.Vendor {
		attributes["firmware"] = &attribute{mode: 0o200, store: k.load}
		attributes["key"] = &attribute{mode: 0o644, show: fixed("\n"), store: func([]byte) syscall.Errno { return fs.OK }}
		attributes["flags"] = &attribute{mode: 0o644, show: func() string {
			k.mu.Lock()
			defer k.mu.Unlock()
			return strconv.FormatInt(k.flags, 16) + "\n"
		}, store: func(b []byte) syscall.Errno {
			v, err := strconv.ParseInt(string(bytes.TrimSuffix(b, []byte("\n"))), 16, 64)
			if err != nil {
				return syscall.EINVAL
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			k.flags = v
			return fs.OK
		}}
	}
	for name, a := range attributes {
		d.add(ctx, name, a, syscall.S_IFREG)
	}
}

// load is firmware_store.
func (k *Kernel) load(b []byte) syscall.Errno {
	k.mu.Lock()
	if len(b) >= nameMax || len(b) == 0 {
		k.oops = true // strcpy beyond the buffer, or a look before its beginning
	}
	if k.oops {
		k.mu.Unlock()
		return syscall.EIO
	}
	if k.flags != 0 {
		k.mu.Unlock()
		return syscall.EOPNOTSUPP // no partial reconfiguration, no encryption
	}
	k.state = "firmware request"
	k.mu.Unlock()
	name := string(bytes.TrimSuffix(b, []byte("\n")))
	image, err := os.ReadFile(filepath.Join(k.options.Firmware, name))
	if err != nil {
		k.set("firmware request error")
		return syscall.ENOENT
	}
	if k.options.Board.Phase() == board.Loading {
		return syscall.EBUSY
	}
	k.set("write")
	if err := k.options.Board.Configure(image); err != nil {
		k.set("write complete error")
		return syscall.EIO
	}
	k.set("operating")
	return fs.OK
}

// CutPower takes the device's power and gives it back.
func (k *Kernel) CutPower() {
	k.options.Board.CutPower()
	k.set("power up")
}

// directory is one of sysfs: nothing can be made in it.
type directory struct {
	fs.Inode
	build func(context.Context, *directory)
}

// OnAdd implements fs.NodeOnAdder.
func (d *directory) OnAdd(ctx context.Context) { d.build(ctx, d) }

func (d *directory) add(ctx context.Context, name string, n fs.InodeEmbedder, mode uint32) {
	d.AddChild(name, d.NewPersistentInode(ctx, n, fs.StableAttr{Mode: mode}), false)
}

// Create implements fs.NodeCreater as sysfs does.
func (d *directory) Create(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EACCES
}

// Mkdir implements fs.NodeMkdirer as sysfs does.
func (d *directory) Mkdir(context.Context, string, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Unlink implements fs.NodeUnlinker as sysfs does.
func (d *directory) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }

// attribute is a file of sysfs.
type attribute struct {
	fs.Inode
	mode  uint32
	show  func() string
	store func([]byte) syscall.Errno
}

// Getattr implements fs.NodeGetattrer.
func (a *attribute) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = a.mode, 4096
	return fs.OK
}

// Setattr implements fs.NodeSetattrer: truncating, which shells do, changes nothing.
func (a *attribute) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return a.Getattr(ctx, f, out)
}

// shown is what an opened attribute said.
type shown struct{ text []byte }

// Open implements fs.NodeOpener: the mode counts for root too (kernfs_fop_open).
func (a *attribute) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	access := flags & syscall.O_ACCMODE
	if access != syscall.O_RDONLY && a.store == nil || access != syscall.O_WRONLY && a.show == nil {
		return nil, 0, syscall.EACCES
	}
	s := &shown{}
	if a.show != nil {
		s.text = []byte(a.show())
	}
	return s, fuse.FOPEN_DIRECT_IO, fs.OK
}

// Read implements fs.NodeReader.
func (a *attribute) Read(_ context.Context, f fs.FileHandle, dest []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	text := f.(*shown).text
	return fuse.ReadResultData(text[min(int(at), len(text)):]), fs.OK
}

// Write implements fs.NodeWriter: each write(2) is one store.
func (a *attribute) Write(_ context.Context, _ fs.FileHandle, b []byte, _ int64) (uint32, syscall.Errno) {
	if errno := a.store(b); errno != fs.OK {
		return 0, errno
	}
	return uint32(len(b)), fs.OK
}

// window is the overlay's address space.
type window struct {
	fs.Inode
	board *board.Board
}

const windowSize = 1 << 24

// Getattr implements fs.NodeGetattrer.
func (w *window) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, windowSize
	return fs.OK
}

// Open implements fs.NodeOpener.
func (w *window) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, fs.OK
}

// Read implements fs.NodeReader.
func (w *window) Read(_ context.Context, _ fs.FileHandle, dest []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	dest = dest[:max(0, min(int64(len(dest)), windowSize-at))]
	// The model has no clock of its own: it runs when somebody looks.
	if w.board.Wait() != nil || w.board.Read(uint32(at), dest) != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest), fs.OK
}

// Write implements fs.NodeWriter.
func (w *window) Write(_ context.Context, _ fs.FileHandle, b []byte, at int64) (uint32, syscall.Errno) {
	if at+int64(len(b)) > windowSize {
		return 0, syscall.EFBIG
	}
	if w.board.Write(uint32(at), b) != nil {
		return 0, syscall.EIO
	}
	return uint32(len(b)), fs.OK
}
