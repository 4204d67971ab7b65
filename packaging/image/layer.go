package image

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/environment"
)

// Where the parts of a package lie in its image.
const (
	ModelDir       = "/models"
	CodeDir        = "/code"
	EnvironmentDir = "/opt/atelier/environment"
	ServerDir      = "/opt/atelier/server"
	RuntimeDir     = "/opt/atelier/runtime"
)

const (
	// ownLayer is the least size of a model's file that is a layer of its own, so that
	// a version that changes another one has it in common with the version before.
	ownLayer = 1 << 20
	// maxOwnLayers bounds how many are, the largest first: overlay file systems take
	// some hundred layers, and a base brings its own.
	maxOwnLayers = 32
)

// format changes with what layers of the same files look like.
const format = "atelier.layer/1"

// newLayer describes a layer that is to be made.
func newLayer(kind atelier.LayerKind, path string, files ...atelier.File) atelier.Layer {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b atelier.File) int { return strings.Compare(a.Path, b.Path) })
	l := atelier.Layer{Kind: kind, MediaType: MediaTypeLayer, Files: files, Path: path}
	l.Recipe = digestOf(struct {
		Format string            `json:"format"`
		Kind   atelier.LayerKind `json:"kind"`
		Path   string            `json:"path"`
		Files  []atelier.File    `json:"files"`
	}{format, kind, path, files})
	return l
}

// EnvironmentLayer describes the layer of a built environment.
func EnvironmentLayer(artifact atelier.File) atelier.Layer {
	return newLayer(atelier.LayerEnvironment, EnvironmentDir, artifact)
}

// ServerLayer describes a layer of the model server or of a runtime, at path.
func ServerLayer(path string, files []atelier.File) atelier.Layer {
	return newLayer(atelier.LayerServer, path, files...)
}

// ModelLayers describes the layers of a version's files: one for each large file, one
// for the small ones, one for code.
func ModelLayers(files []atelier.File) []atelier.Layer {
	var own, small, code []atelier.File
	for _, f := range files {
		switch {
		case isCode(f.Path):
			code = append(code, f)
		case f.Size >= ownLayer:
			own = append(own, f)
		default:
			small = append(small, f)
		}
	}
	slices.SortFunc(own, func(a, b atelier.File) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), strings.Compare(a.Path, b.Path))
	})
	if len(own) > maxOwnLayers {
		small = append(small, own[maxOwnLayers:]...)
		own = own[:maxOwnLayers]
	}
	slices.SortFunc(own, func(a, b atelier.File) int { return strings.Compare(a.Path, b.Path) })
	var layers []atelier.Layer
	for _, f := range own {
		layers = append(layers, newLayer(atelier.LayerModel, ModelDir, f))
	}
	if len(small) > 0 {
		layers = append(layers, newLayer(atelier.LayerModel, ModelDir, small...))
	}
	if len(code) > 0 {
		layers = append(layers, newLayer(atelier.LayerCode, ModelDir, code...))
	}
	return layers
}

// CodeLayer describes the layer of a scoring script that came beside the model.
func CodeLayer(files []atelier.File) atelier.Layer {
	return newLayer(atelier.LayerCode, CodeDir, files...)
}

func isCode(path string) bool { return strings.HasSuffix(path, ".py") }

// Open opens the content of a file for reading from its beginning.
type Open func(atelier.File) (io.ReadCloser, error)

// WriteLayer writes the tar file of a layer that is made of files. It writes the same
// bytes for the same description, wherever and whenever it runs, and as it reads them:
// memory does not grow with the files. Invalid where a path leads out of the layer or is
// at odds with another, Corrupt where a file is not as it is described.
func WriteLayer(ctx context.Context, w io.Writer, l *atelier.Layer, open Open) (err error) {
	dir := strings.TrimPrefix(l.Path, "/")
	if err := checkLayer(l, dir); err != nil {
		return err
	}
	if l.Kind == atelier.LayerEnvironment {
		in, err := open(l.Files[0])
		if err != nil {
			return err
		}
		return errors.Join(environment.Place(ctx, w, in, dir), in.Close())
	}
	out := tar.NewWriter(w)
	made := map[string]bool{}
	for _, f := range l.Files {
		path := dir + "/" + f.Path
		if err := directories(out, path, made); err != nil {
			return err
		}
		if err := one(ctx, out, l.Kind, path, f, open); err != nil {
			return err
		}
	}
	return out.Close()
}

// checkLayer checks what a layer is described as.
func checkLayer(l *atelier.Layer, dir string) error {
	if err := atelier.CheckFilePath(dir); err != nil {
		return err
	}
	if len(l.Files) == 0 || l.Kind == atelier.LayerEnvironment && len(l.Files) != 1 {
		return atelier.Errorf(atelier.Invalid, "a layer of the kind %s is made of %d files", l.Kind, len(l.Files))
	}
	seen := map[string]bool{}
	for _, f := range l.Files {
		if err := atelier.CheckFilePath(f.Path); err != nil {
			return err
		}
		if f.Size < 0 || seen[f.Path] {
			return atelier.Errorf(atelier.Invalid, "the file %.120q is there twice, or has a size below 0", f.Path).WithField("path")
		}
		seen[f.Path] = true
	}
	for _, f := range l.Files {
		for i, c := range f.Path {
			if c == '/' && seen[f.Path[:i]] {
				return atelier.Errorf(atelier.Invalid, "%.120q is a file and the directory of %.120q", f.Path[:i], f.Path).WithField("path")
			}
		}
	}
	return nil
}

// epoch is the time of all files in layers.
var epoch = time.Unix(0, 0).UTC()

// directories writes those that lead to path and were not written yet.
func directories(out *tar.Writer, path string, made map[string]bool) error {
	for i, c := range path {
		if c != '/' || made[path[:i]] {
			continue
		}
		made[path[:i]] = true
		err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path[:i+1], Mode: 0o755, ModTime: epoch, Format: tar.FormatPAX})
		if err != nil {
			return err
		}
	}
	return nil
}

func one(ctx context.Context, out *tar.Writer, kind atelier.LayerKind, path string, f atelier.File, open Open) (err error) {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: path, Size: f.Size, Mode: 0o644, ModTime: epoch, Format: tar.FormatPAX}
	if kind == atelier.LayerServer {
		h.Mode = 0o755
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	in, err := open(f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	n, err := io.CopyBuffer(onlyWriter{out}, &cancelled{ctx, in}, make([]byte, copyBuffer))
	switch {
	case errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != f.Size:
		return atelier.Errorf(atelier.Corrupt, "the file %.120q has not the %d bytes that it is described with", f.Path, f.Size)
	case err != nil:
		return err
	}
	return nil
}

const copyBuffer = 1 << 20

// onlyWriter hides what would make io.CopyBuffer leave its buffer alone.
type onlyWriter struct{ io.Writer }

// cancelled is a reader that ends with its context.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// digestOf names a description.
func digestOf(v any) atelier.Digest {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // descriptions are texts and numbers
	}
	return atelier.DigestOf(b)
}
