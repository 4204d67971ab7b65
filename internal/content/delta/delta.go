// Package delta makes and applies differences: the smallest form found in which
// the bytes of a new file, a model mostly, can be brought to a device that has
// older files, its bases.
//
// Encode runs where there is time and memory, Decode on a device: Decode writes
// the target strictly in order, needs at most 32 MB of memory whatever the
// target's size, and takes every byte of a difference for hostile. The package
// does not judge whether a difference is worth sending, and knows neither how it
// travels nor where files lie. What a difference looks like stands in format.go;
// why it does, in docs/adr/0101-differences.md.
package delta

import (
	"io"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// MaxBases is how many bases a difference may use.
const MaxBases = 16

// Tensor says where in a file the elements of one tensor lie, one after the
// other and little-endian.
type Tensor struct {
	Name   string // tensors of the same name in two files are compared with each other
	Type   string // of an element, in the words of Open Inference Protocol v2: FP32, INT8 …
	Offset int64  // of the first byte, from the start of the file
	Length int64  // in bytes
}

// File is a file that Encode reads.
type File struct {
	Digest  atelier.Digest // needed for bases: Decode asks for them by it
	Size    int64          // in bytes
	Content io.ReaderAt    // read by several goroutines at once
	// Layout lists the tensors inside the file, where it is known. It is a hint:
	// a wrong one costs size, never correctness.
	Layout []Tensor
}

// Options say what Encode may use. The zero value stands for the defaults.
type Options struct {
	// Workers is how many segments are coded at once; 0 stands for one. Each
	// takes up to 64 MB of memory.
	Workers int
	// MaxSize is the size in bytes beyond which the difference is of no use;
	// Encode then gives up, before it coded much where samples say so already.
	// 0 sets no limit.
	MaxSize int64
	// Expect, where set, is told what the difference is about to be, long before it
	// is made.
	Expect func(Estimate)
}

// Estimate says about how a difference will come out, judged by samples.
type Estimate struct {
	Size    int64            // of the difference, in bytes
	Methods map[string]int64 // bytes of the target by the method that brings them
	Coding  time.Duration    // that Encode needs from here on, with one worker
}

// Result tells what a difference is made of.
type Result struct {
	Size    int64            // of the difference, in bytes
	Copied  int64            // bytes of the target that are copied from bases
	Coded   int64            // bytes of the target that the difference holds in some form
	Methods map[string]int64 // bytes of the target by the method that brings them
}
