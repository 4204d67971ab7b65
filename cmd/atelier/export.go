package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) packageExport() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "export NAME:TAG --to DIR|FILE.tar",
		Short: "Write a package as an OCI image layout",
		Long: `Write a package as an OCI image layout: a directory, or a tar file where the name ends in .tar. The image is TAG in it, the ModelPack artifact
TAG-modelpack. skopeo, crane, oras and podman read it, and 'ctr images import' the tar file.`,
		Example: `  atelier package export digits:2 --to digits-2
  skopeo copy oci:digits-2:2 docker://registry.example/digits:2
  atelier package export digits:2 --to digits-2.tar && ctr images import digits-2.tar`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := os.Lstat(to); err == nil {
				return atelier.Errorf(atelier.Exists, "%s is there already", to).WithRemedy("Remove it, or choose another name with --to.")
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			p, err := cl.Package(cmd.Context(), ws, args[0])
			if err == nil {
				p, err = a.awaitPackage(cmd.Context(), cl, ws, p)
			}
			if err != nil {
				return err
			}
			size, err := a.exportPackage(cmd.Context(), cl, ws, &p, to)
			if err != nil {
				return err
			}
			out := struct {
				Path   string         `json:"path"`
				Size   int64          `json:"size"`
				Digest atelier.Digest `json:"digest"`
			}{to, size, p.Manifest.Digest}
			return a.print(out, func() table { return table{rows: [][]string{{to, atelier.FormatBytes(size), string(out.Digest)}}} })
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "directory, or file .tar")
	_ = cmd.MarkFlagRequired("to") // the flag is there
	return cmd
}

// exportPackage writes a package as a layout. It has its name only when it is there as a
// whole.
func (a *app) exportPackage(ctx context.Context, cl *client.Client, ws string, p *atelier.Package, to string) (size int64, err error) {
	part := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".part")
	if err := os.RemoveAll(part); err != nil { // of an export that was cut
		return 0, unwritable(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(part))
		}
	}()
	var out layout
	if strings.HasSuffix(to, ".tar") {
		out, err = newTarLayout(part)
	} else {
		out, err = newDirLayout(part)
	}
	if err != nil {
		return 0, err
	}
	size, err = a.writeLayout(ctx, cl, ws, p, out)
	if err = errors.Join(err, out.close()); err == nil {
		err = unwritable(os.Rename(part, to))
	}
	return size, err
}

// writeLayout writes the files of a package's layout.
func (a *app) writeLayout(ctx context.Context, cl *client.Client, ws string, p *atelier.Package, out layout) (size int64, err error) {
	parts := partsOf(p)
	for _, d := range parts {
		size += d.Size
	}
	progress := a.newProgress("Exporting", size)
	defer progress.finish()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, named := range []struct {
		tag string
		d   *atelier.Descriptor
	}{{p.Tag, p.Manifest}, {p.Tag + atelier.ModelPackTag, p.ModelPack.Manifest}} {
		d := descriptorOf(named.d)
		d.Annotations = map[string]string{
			ocispec.AnnotationRefName: named.tag,
			// containerd takes it for the image's name when it imports the file.
			"io.containerd.image.name": p.Package + ":" + named.tag,
		}
		index.Manifests = append(index.Manifests, d)
	}
	body, err := json.Marshal(index)
	if err != nil {
		return 0, err
	}
	for _, file := range [][2]string{{ocispec.ImageLayoutFile, `{"imageLayoutVersion":"1.0.0"}`}, {ocispec.ImageIndexFile, string(body)}} {
		if err := out.write(file[0], int64(len(file[1])), strings.NewReader(file[1])); err != nil {
			return 0, err
		}
	}
	for _, d := range parts {
		in, err := cl.OpenPackageContent(ctx, ws, p.ID, d.Digest)
		if err != nil {
			return 0, err
		}
		sum := sha256.New()
		err = out.write("blobs/sha256/"+d.Digest.Hex(), d.Size, io.TeeReader(io.LimitReader(in, d.Size), io.MultiWriter(sum, progress)))
		if err = errors.Join(err, in.Close()); err != nil {
			return 0, err
		}
		if got := atelier.DigestFrom(sum); got != d.Digest {
			return 0, atelier.Errorf(atelier.Corrupt, "%s of the package has the digest %s", d.Digest, got).WithRemedy("Export it again.")
		}
	}
	return size, nil
}

// partsOf returns what a package's images and its artifact are made of, each once.
func partsOf(p *atelier.Package) []atelier.Descriptor {
	var all []atelier.Descriptor
	seen := map[atelier.Digest]bool{}
	add := func(d atelier.Descriptor) {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			all = append(all, d)
		}
	}
	for _, img := range p.Images {
		for _, l := range img.Layers {
			add(atelier.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
			if l.Kind == atelier.LayerModel || l.Kind == atelier.LayerCode && l.Path == modelPath {
				for _, f := range l.Files {
					add(atelier.Descriptor{Digest: f.Digest, Size: f.Size})
				}
			}
		}
		add(*img.Config)
		add(*img.Manifest)
	}
	add(*p.ModelPack.Config)
	add(*p.ModelPack.Manifest)
	add(*p.Manifest)
	return all
}

// modelPath is where images have the files of the model's version.
const modelPath = "/models"

// layout takes the files of an OCI image layout.
type layout interface {
	write(name string, size int64, from io.Reader) error
	close() error
}

type dirLayout string

func newDirLayout(dir string) (layout, error) {
	return dirLayout(dir), unwritable(os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755))
}

func (d dirLayout) write(name string, size int64, from io.Reader) error {
	return writeFile(filepath.Join(string(d), filepath.FromSlash(name)), from, size)
}

func (d dirLayout) close() error { return nil }

type tarLayout struct {
	f *os.File
	w *tar.Writer
}

func newTarLayout(name string) (layout, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, unwritable(err)
	}
	return &tarLayout{f, tar.NewWriter(f)}, nil
}

func (t *tarLayout) write(name string, size int64, from io.Reader) error {
	err := t.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
	if err != nil {
		return unwritable(err)
	}
	n, err := io.Copy(t.w, from)
	if err == nil && n != size {
		err = fmt.Errorf("%d of %d bytes came: %w", n, size, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return atelier.Errorf(atelier.Unavailable, "the package broke off: %w", err).WithRemedy("Export it again.")
	}
	return nil
}

func (t *tarLayout) close() error {
	return errors.Join(t.w.Close(), t.f.Sync(), t.f.Close())
}
