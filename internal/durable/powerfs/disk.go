//go:build linux

// Package powerfs is a file system in memory that real programs use through
// FUSE and whose power can be cut: what they have not synced is then gone.
//
// It is durabletest.Disk for what does not write through durable.FS: whole
// programs, SQLite, a TSDB, shared memory maps. It promises what POSIX does and no more:
//
//   - fsync, fdatasync and O_SYNC make a file's bytes and its size certain, not its name;
//   - fsync of a directory makes the names in it certain: made, moved, removed ones.
//     A move between directories is two names, which survive apart from each other;
//   - what was not synced is lost at a power cut, or, with a seed, partly there: names
//     one by one, files in torn blocks of 512 bytes, in no order;
//   - modes are certain at once; owners and extended attributes are not kept.
//
// ext4 promises more: a new file's fsync makes its name certain too, and what was
// written before something that survived a commit of its journal has survived as well.
// Nothing of that is given here. A sync that lies is not modelled.
//
// Mounting takes root (or CAP_SYS_ADMIN) and /dev/fuse. The kernel's write-back cache is
// off: each write(2) comes here before it returns, so that a program which is
// killed loses nothing that it wrote, as on a real disk. Only writes through a
// shared memory map wait in the kernel until they are synced.
package powerfs

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Disk is a mounted file system. It is safe for concurrent use.
type Disk struct {
	dir    string
	server *fuse.Server

	mu     sync.Mutex
	root   *node
	nodes  map[uint64]*node // by id; what was removed may still be open
	last   uint64           // id
	ops    int
	at     int // operation at which something strikes, 0 for none
	cut    bool
	struck func()
	dead   bool // the power is off
}

// Mount mounts an empty disk at dir, an empty directory.
func Mount(dir string) (*Disk, error) {
	d := &Disk{dir: dir, nodes: map[uint64]*node{}}
	d.root = d.add(syscall.S_IFDIR | 0o755)
	return d, d.mount()
}

func (d *Disk) mount() error {
	// The library lets programs that are started meanwhile inherit its descriptor of
	// /dev/fuse. One that holds it keeps the file system alive, and waits for it, when
	// this process has ended.
	syscall.ForkLock.RLock()
	server, err := fuse.NewServer(&wire{RawFileSystem: fuse.NewDefaultRawFileSystem(), Disk: d}, d.dir, &fuse.MountOptions{
		DirectMountStrict: true, DisableXAttrs: true, MaxWrite: 256 << 10, FsName: "powerfs", Name: "powerfs",
	})
	err = errors.Join(err, keepFromPrograms("/dev/fuse"))
	syscall.ForkLock.RUnlock()
	if err != nil {
		return fmt.Errorf("mount a disk at %s, which takes root and /dev/fuse: %w", d.dir, err)
	}
	d.server = server
	go server.Serve() // ends when the disk is unmounted
	return server.WaitMount()
}

// keepFromPrograms sees to it that programs inherit no descriptor of the file.
func keepFromPrograms(file string) error {
	const dir = "/proc/self/fd"
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		to, err := os.Readlink(path.Join(dir, e.Name()))
		if fd, bad := strconv.Atoi(e.Name()); err == nil && bad == nil && to == file {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// Close unmounts the disk and forgets what is on it. No program may use it any more.
func (d *Disk) Close() error {
	err := d.unmount()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.root, d.nodes = nil, nil // whoever holds d shall not hold all that
	return err
}

// lingering is how long a program that was killed may take to let go of its files.
const lingering = 30 * time.Second

func (d *Disk) unmount() error {
	begin := time.Now()
	err := d.server.Unmount() // waits a little itself
	for errors.Is(err, syscall.EBUSY) && time.Since(begin) < lingering {
		err = d.server.Unmount()
	}
	if errors.Is(err, syscall.EBUSY) {
		// Somebody holds it: better out of the way than in the next test's.
		err = errors.Join(err, syscall.Unmount(d.dir, syscall.MNT_DETACH))
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return nil
}

// Operations returns how many operations that change or sync something were
// begun. Reading does not count.
func (d *Disk) Operations() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// CutAt cuts the power at the n-th operation from now on, 1 being the next: it
// and every later one fails, and what it wrote is as little certain as all else.
// struck is called before the program hears of it, to end the programs. 0 takes it back.
func (d *Disk) CutAt(n int, struck func()) { d.strike(n, true, struck) }

// CallAt calls struck when the n-th operation from now on is done, before the program
// hears of it. The disk goes on. 0 takes it back.
func (d *Disk) CallAt(n int, struck func()) { d.strike(n, false, struck) }

func (d *Disk) strike(n int, cut bool, struck func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at, d.cut, d.struck = 0, cut, struck
	if n > 0 {
		d.at = d.ops + n
	}
}

// Cut cuts the power now.
func (d *Disk) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
}

// Restart brings the power back, or cuts it and brings it back; no program may
// use the disk any more. With a nil rng all that was not synced is gone;
// otherwise each name and each block that was not synced is, by chance, as
// before or as after.
func (d *Disk) Restart(rng *rand.Rand) error {
	d.Cut() // what the kernel still holds of memory maps is lost
	if err := d.unmount(); err != nil {
		return err
	}
	d.mu.Lock()
	d.root.settle(rng, map[*node]bool{})
	d.dead, d.at = false, 0
	d.mu.Unlock()
	return d.mount()
}

// Files yields the path, relative to the disk's root, and the content of each
// file, sorted by path, as programs see them now. It is for a disk that nobody
// writes to; the content must not be changed.
func (d *Disk) Files() iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		all := map[string][]byte{}
		d.mu.Lock()
		var walk func(at string, n *node)
		walk = func(at string, n *node) {
			for name, below := range n.names {
				switch to := path.Join(at, name); below.mode & syscall.S_IFMT {
				case syscall.S_IFDIR:
					walk(to, below)
				case syscall.S_IFREG:
					all[to] = below.data
				}
			}
		}
		walk("", d.root)
		d.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if !yield(name, all[name]) {
				return
			}
		}
	}
}

// add makes a node without a name.
func (d *Disk) add(mode uint32) *node {
	d.last++ // the first is the root's, which FUSE knows as 1
	n := &node{id: d.last, mode: mode, links: 1, changed: time.Now()}
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		n.names, n.synced, n.links = map[string]*node{}, map[string]*node{}, 2
	} else {
		n.before = map[int64][]byte{}
	}
	d.nodes[n.id] = n
	return n
}

// change runs fn on the node with the id as one counted operation, and strikes
// where this is the one.
func (d *Disk) change(id uint64, fn func(n *node) fuse.Status) fuse.Status {
	status, struck := d.changeLocked(id, fn)
	if struck != nil {
		struck() // without the lock: the programs may need to read before they can end
	}
	return status
}

func (d *Disk) changeLocked(id uint64, fn func(n *node) fuse.Status) (status fuse.Status, struck func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return fuse.EIO, nil
	}
	d.ops++
	if d.ops == d.at {
		struck = d.struck
		d.dead = d.cut
	}
	n := d.nodes[id]
	if n == nil {
		return fuse.ENOENT, struck
	}
	status = fn(n)
	if d.dead {
		status = fuse.EIO
	}
	return status, struck
}

// syncing is change for a sync: the power goes before it is done.
func (d *Disk) syncing(id uint64) fuse.Status {
	return d.change(id, func(n *node) fuse.Status {
		if !d.dead {
			n.sync()
		}
		return fuse.OK
	})
}

// look runs fn on the node with the id.
func (d *Disk) look(id uint64, fn func(n *node) fuse.Status) fuse.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.nodes[id]
	if n == nil {
		return fuse.ENOENT
	}
	return fn(n)
}
