// Package durabletest has a disk in memory whose power can be cut and whose
// operations can fail, one by one: the way to test that state survives both at
// every step.
//
// The disk is harsher than most. After a power cut only what was synced is
// certain; what was not synced is dropped, or, with a seed, partly there: names
// one by one, files in torn blocks.
package durabletest

import (
	"cmp"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/durable"
)

// ErrPowerCut is what every operation returns once the power is cut, until
// Restart.
var ErrPowerCut = errors.New("durabletest: the power is cut")

// Disk is a durable.FS in memory. It is safe for concurrent use. The zero value
// is not usable; see NewDisk.
type Disk struct {
	mu     sync.Mutex
	root   *node
	boot   int // files opened before the last Restart are dead
	ops    int
	cutAt  int // operation at which the power goes, 0 for never
	cut    bool
	failAt int
	fail   error
	space  int64 // bytes that files may hold together
}

// node is a file or a directory, as it is now and as it was last synced.
type node struct {
	dir           bool
	mode          fs.FileMode
	data, synced  []byte
	names, stable map[string]*node
	changed       time.Time
}

// NewDisk returns an empty disk with plenty of space.
func NewDisk() *Disk {
	return &Disk{root: newDir(0o755), space: 1 << 40}
}

func newDir(mode fs.FileMode) *node {
	return &node{dir: true, mode: mode, names: map[string]*node{}, stable: map[string]*node{}, changed: time.Now()}
}

// Operations returns how many operations that change or sync something were
// begun. Reading does not count.
func (d *Disk) Operations() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// CutAt cuts the power at the n-th operation from now on: that operation may be
// half done, it and every later one return ErrPowerCut. 1 is the next; 0 never.
func (d *Disk) CutAt(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt = 0
	if n > 0 {
		d.cutAt = d.ops + n
	}
}

// FailAt makes the n-th operation from now on fail with err, and only that one.
// A write that fails has written half of its bytes. 0 takes it back.
func (d *Disk) FailAt(n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failAt, d.fail = 0, err
	if n > 0 {
		d.failAt = d.ops + n
	}
}

// SetSpace limits the bytes that all files may hold; beyond it writes fail with
// ENOSPC.
func (d *Disk) SetSpace(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.space = bytes
}

// Restart brings the power back, or cuts it and brings it back. With a nil rng
// all that was not synced is gone. Otherwise each name and each block of a file
// that was not synced is, by chance, as before or as after.
func (d *Disk) Restart(rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.boot++
	d.cut, d.cutAt, d.failAt = false, 0, 0
	d.root.settle(rng, map[*node]bool{})
}

// begin counts an operation that changes something. half reports that it should
// take half its effect although it fails.
func (d *Disk) begin() (half bool, err error) {
	if d.cut {
		return false, ErrPowerCut
	}
	d.ops++
	switch d.ops {
	case d.cutAt:
		d.cut = true
		return true, ErrPowerCut
	case d.failAt:
		return true, d.fail
	}
	return false, nil
}

func (d *Disk) used() (sum int64) {
	seen := map[*node]bool{}
	var walk func(*node)
	walk = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		sum += int64(len(n.data))
		for _, c := range n.names {
			walk(c)
		}
	}
	walk(d.root)
	return sum
}

// split returns the path's elements; the disk knows no working directory.
func split(name string) []string {
	return strings.FieldsFunc(filepath.ToSlash(filepath.Clean(name)), func(r rune) bool { return r == '/' })
}

// find returns the node at name, its parent and its last element.
func (d *Disk) find(name string) (parent, n *node, base string, err error) {
	n = d.root
	for _, e := range split(name) {
		if n == nil {
			return nil, nil, "", syscall.ENOENT
		}
		if !n.dir {
			return nil, nil, "", syscall.ENOTDIR
		}
		parent, base, n = n, e, n.names[e]
	}
	return parent, n, base, nil
}

// change runs fn as one counted operation on the node at name.
func (d *Disk) change(op, name string, fn func(parent, n *node, base string) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.begin()
	if err == nil {
		var parent, n *node
		var base string
		if parent, n, base, err = d.find(name); err == nil {
			if parent == nil {
				err = syscall.EINVAL
			} else {
				err = fn(parent, n, base)
			}
		}
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// Mkdir implements durable.FS.
func (d *Disk) Mkdir(name string, perm fs.FileMode) error {
	return d.change("mkdir", name, func(parent, n *node, base string) error {
		if n != nil {
			return syscall.EEXIST
		}
		parent.names[base] = newDir(perm)
		return nil
	})
}

// Remove implements durable.FS.
func (d *Disk) Remove(name string) error {
	return d.change("remove", name, func(parent, n *node, base string) error {
		switch {
		case n == nil:
			return syscall.ENOENT
		case len(n.names) > 0:
			return syscall.ENOTEMPTY
		}
		delete(parent.names, base)
		return nil
	})
}

// Rename implements durable.FS.
func (d *Disk) Rename(oldname, newname string) error {
	return d.change("rename", oldname, func(parent, n *node, base string) error {
		if n == nil {
			return syscall.ENOENT
		}
		to, old, newbase, err := d.find(newname)
		switch {
		case err != nil:
			return err
		case to == nil, old != nil && old.dir != n.dir:
			return syscall.EINVAL
		case old != nil && len(old.names) > 0:
			return syscall.ENOTEMPTY
		}
		delete(parent.names, base)
		to.names[newbase] = n
		return nil
	})
}

// Link implements durable.FS.
func (d *Disk) Link(oldname, newname string) error {
	return d.change("link", newname, func(parent, n *node, base string) error {
		_, from, _, err := d.find(oldname)
		switch {
		case err != nil:
			return err
		case from == nil:
			return syscall.ENOENT
		case from.dir:
			return syscall.EPERM
		case n != nil:
			return syscall.EEXIST
		}
		parent.names[base] = from
		return nil
	})
}

// SyncDir implements durable.FS.
func (d *Disk) SyncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.begin()
	if err == nil {
		var n *node
		if _, n, _, err = d.find(name); err == nil {
			switch {
			case n == nil:
				err = syscall.ENOENT
			case !n.dir:
				err = syscall.ENOTDIR
			default:
				n.stable = map[string]*node{}
				for k, v := range n.names {
					n.stable[k] = v
				}
			}
		}
	}
	if err != nil {
		return &fs.PathError{Op: "sync", Path: name, Err: err}
	}
	return nil
}

// look runs fn on the node at name, uncounted.
func (d *Disk) look(op, name string, fn func(n *node) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := error(nil)
	if d.cut {
		err = ErrPowerCut
	} else {
		var n *node
		if _, n, _, err = d.find(name); err == nil {
			if n == nil {
				err = syscall.ENOENT
			} else {
				err = fn(n)
			}
		}
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// Stat implements durable.FS.
func (d *Disk) Stat(name string) (info fs.FileInfo, err error) {
	err = d.look("stat", name, func(n *node) error {
		info = describe(filepath.Base(name), n)
		return nil
	})
	return info, err
}

// ReadDir implements durable.FS.
func (d *Disk) ReadDir(name string) (list []fs.DirEntry, err error) {
	err = d.look("readdir", name, func(n *node) error {
		if !n.dir {
			return syscall.ENOTDIR
		}
		for base, c := range n.names {
			list = append(list, fs.FileInfoToDirEntry(describe(base, c)))
		}
		return nil
	})
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return list, err
}

// Free implements durable.FS.
func (d *Disk) Free(name string) (free int64, err error) {
	err = d.look("statfs", name, func(*node) error {
		free = max(0, d.space-d.used())
		return nil
	})
	return free, err
}

// OpenFile implements durable.FS. Making or truncating a file is a counted
// operation.
func (d *Disk) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fail := func(err error) (durable.File, error) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if d.cut {
		return fail(ErrPowerCut)
	}
	parent, n, base, err := d.find(name)
	switch {
	case err != nil:
		return fail(err)
	case n == nil && flag&os.O_CREATE == 0:
		return fail(syscall.ENOENT)
	case n != nil && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return fail(syscall.EEXIST)
	case n != nil && n.dir:
		return fail(syscall.EISDIR)
	}
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	if writable && n != nil && n.mode&0o200 == 0 {
		return fail(syscall.EACCES)
	}
	if n == nil || flag&os.O_TRUNC != 0 {
		if _, err := d.begin(); err != nil {
			return fail(err)
		}
	}
	if n == nil {
		n = &node{mode: perm, changed: time.Now()}
		parent.names[base] = n
	} else if flag&os.O_TRUNC != 0 {
		n.data, n.changed = nil, time.Now()
	}
	return &file{disk: d, boot: d.boot, node: n, name: name, writable: writable, append: flag&os.O_APPEND != 0}, nil
}

var _ durable.FS = (*Disk)(nil)
