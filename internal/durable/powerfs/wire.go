//go:build linux

package powerfs

import (
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// wire answers the kernel. What it leaves to the embedded file system the kernel
// does by itself: locks, seeking, copying between files.
type wire struct {
	fuse.RawFileSystem
	*Disk
}

// kept is how long the kernel may keep names and attributes: nobody else changes them.
const kept = time.Hour

func (n *node) attributes(a *fuse.Attr) {
	*a = fuse.Attr{Ino: n.id, Size: uint64(len(n.data)), Mode: n.mode, Nlink: n.links, Blksize: 4096}
	a.Blocks = (a.Size + 511) / 512
	a.SetTimes(&n.changed, &n.changed, &n.changed)
}

func (n *node) entry(out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	out.SetEntryTimeout(kept)
	out.SetAttrTimeout(kept)
	n.attributes(&out.Attr)
}

// String implements fuse.RawFileSystem.
func (w *wire) String() string { return "powerfs" }

// Lookup implements fuse.RawFileSystem.
func (w *wire) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return w.look(in.NodeId, func(n *node) fuse.Status {
		below := n.names[name]
		if below == nil {
			return fuse.ENOENT
		}
		below.entry(out)
		return fuse.OK
	})
}

// GetAttr implements fuse.RawFileSystem.
func (w *wire) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return w.look(in.NodeId, func(n *node) fuse.Status {
		out.SetTimeout(kept)
		n.attributes(&out.Attr)
		return fuse.OK
	})
}

// SetAttr implements fuse.RawFileSystem. Only truncating is counted.
func (w *wire) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	set := func(n *node) fuse.Status {
		if size, ok := in.GetSize(); ok {
			n.truncate(int(size))
		}
		if mode, ok := in.GetMode(); ok {
			n.mode = n.mode&syscall.S_IFMT | mode&0o7777
		}
		if t, ok := in.GetMTime(); ok {
			n.changed = t
		}
		out.SetTimeout(kept)
		n.attributes(&out.Attr)
		return fuse.OK
	}
	if _, ok := in.GetSize(); ok {
		return w.change(in.NodeId, set)
	}
	return w.look(in.NodeId, set)
}

// make puts a new node into a directory.
func (w *wire) make(dir uint64, name string, mode uint32, out *fuse.EntryOut, with func(*node)) fuse.Status {
	return w.change(dir, func(n *node) fuse.Status {
		if n.names[name] != nil {
			return fuse.Status(syscall.EEXIST)
		}
		below := w.add(mode)
		with(below)
		n.names[name] = below
		below.entry(out)
		return fuse.OK
	})
}

func plain(*node) {}

// Mknod implements fuse.RawFileSystem.
func (w *wire) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return w.make(in.NodeId, name, in.Mode, out, plain)
}

// Mkdir implements fuse.RawFileSystem.
func (w *wire) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return w.make(in.NodeId, name, syscall.S_IFDIR|in.Mode&0o7777, out, plain)
}

// Symlink implements fuse.RawFileSystem.
func (w *wire) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return w.make(in.NodeId, name, syscall.S_IFLNK|0o777, out, func(n *node) { n.target = target })
}

// Readlink implements fuse.RawFileSystem.
func (w *wire) Readlink(_ <-chan struct{}, in *fuse.InHeader) (target []byte, status fuse.Status) {
	status = w.look(in.NodeId, func(n *node) fuse.Status {
		target = []byte(n.target)
		return fuse.OK
	})
	return target, status
}

// Create implements fuse.RawFileSystem.
func (w *wire) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return w.make(in.NodeId, name, syscall.S_IFREG|in.Mode&0o7777, &out.EntryOut, plain)
}

// remove takes a name out of a directory.
func (w *wire) remove(dir uint64, name string) fuse.Status {
	return w.change(dir, func(n *node) fuse.Status {
		below := n.names[name]
		switch {
		case below == nil:
			return fuse.ENOENT
		case len(below.names) > 0:
			return fuse.Status(syscall.ENOTEMPTY)
		}
		below.links--
		delete(n.names, name)
		return fuse.OK
	})
}

// Unlink implements fuse.RawFileSystem.
func (w *wire) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return w.remove(in.NodeId, name)
}

// Rmdir implements fuse.RawFileSystem.
func (w *wire) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return w.remove(in.NodeId, name)
}

// Rename implements fuse.RawFileSystem. Exchanging is not offered.
func (w *wire) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	const noReplace = 1
	return w.change(in.NodeId, func(n *node) fuse.Status {
		dir := w.nodes[in.Newdir]
		moved := n.names[from]
		if dir == nil || moved == nil {
			return fuse.ENOENT
		}
		replaced := dir.names[to]
		switch {
		case in.Flags&^noReplace != 0:
			return fuse.EINVAL
		case replaced == moved:
			return fuse.OK
		case replaced != nil && in.Flags&noReplace != 0:
			return fuse.Status(syscall.EEXIST)
		case replaced != nil && len(replaced.names) > 0:
			return fuse.Status(syscall.ENOTEMPTY)
		case replaced != nil:
			replaced.links--
		}
		delete(n.names, from)
		dir.names[to] = moved
		return fuse.OK
	})
}

// Link implements fuse.RawFileSystem.
func (w *wire) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return w.change(in.NodeId, func(n *node) fuse.Status {
		to := w.nodes[in.Oldnodeid]
		switch {
		case to == nil:
			return fuse.ENOENT
		case n.names[name] != nil:
			return fuse.Status(syscall.EEXIST)
		}
		to.links++
		n.names[name] = to
		to.entry(out)
		return fuse.OK
	})
}

// Access implements fuse.RawFileSystem.
func (w *wire) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

// Open implements fuse.RawFileSystem. The kernel truncates by SetAttr.
func (w *wire) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE // also what the last opening had read: nobody else changes it
	return fuse.OK
}

// Read implements fuse.RawFileSystem.
func (w *wire) Read(_ <-chan struct{}, in *fuse.ReadIn, buffer []byte) (result fuse.ReadResult, status fuse.Status) {
	status = w.look(in.NodeId, func(n *node) fuse.Status {
		at := min(int(in.Offset), len(n.data))
		result = fuse.ReadResultData(buffer[:copy(buffer, n.data[at:])])
		return fuse.OK
	})
	return result, status
}

// Write implements fuse.RawFileSystem.
func (w *wire) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	status := w.change(in.NodeId, func(n *node) fuse.Status {
		n.write(data, int(in.Offset))
		if in.Flags&(syscall.O_SYNC|syscall.O_DSYNC) != 0 && !w.dead {
			n.sync()
		}
		return fuse.OK
	})
	return uint32(len(data)), status
}

// Fallocate implements fuse.RawFileSystem: it can make files longer.
func (w *wire) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	const keepSize = 1
	return w.change(in.NodeId, func(n *node) fuse.Status {
		switch {
		case in.Mode&^keepSize != 0:
			return fuse.Status(syscall.EOPNOTSUPP)
		case in.Mode == 0 && int(in.Offset+in.Length) > len(n.data):
			n.truncate(int(in.Offset + in.Length))
		}
		return fuse.OK
	})
}

// Flush implements fuse.RawFileSystem.
func (w *wire) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// Fsync implements fuse.RawFileSystem.
func (w *wire) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return w.syncing(in.NodeId) }

// OpenDir implements fuse.RawFileSystem.
func (w *wire) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReadDir implements fuse.RawFileSystem.
func (w *wire) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return w.list(in, func(_ *node, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (w *wire) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return w.list(in, func(n *node, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		n.entry(entry)
		return true
	})
}

// list hands in the names of a directory from an offset on. An entry's offset is
// its node's, so that names which come or go meanwhile move no other.
func (w *wire) list(in *fuse.ReadIn, add func(*node, fuse.DirEntry) bool) fuse.Status {
	return w.look(in.NodeId, func(n *node) fuse.Status {
		names := slices.SortedFunc(maps.Keys(n.names), func(a, b string) int {
			return int(n.names[a].id) - int(n.names[b].id)
		})
		for _, name := range names {
			below := n.names[name]
			if below.id <= in.Offset {
				continue
			}
			if !add(below, fuse.DirEntry{Mode: below.mode, Name: name, Ino: below.id, Off: below.id}) {
				break
			}
		}
		return fuse.OK
	})
}

// FsyncDir implements fuse.RawFileSystem.
func (w *wire) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return w.syncing(in.NodeId) }

// StatFs implements fuse.RawFileSystem: there is room.
func (w *wire) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, 255
	out.Blocks, out.Bfree, out.Bavail = 1<<24, 1<<24, 1<<24
	out.Files, out.Ffree = 1<<24, 1<<24
	return fuse.OK
}
