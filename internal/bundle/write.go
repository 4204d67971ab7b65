package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Source is a layer to be written.
type Source struct {
	Descriptor
	// Open opens the content, which has Size bytes. It is called when its turn comes.
	Open func() (io.ReadCloser, error)
}

// State returns the layer of a device's desired state.
func State(envelope []byte) Source { return held(TypeEnvelope, "", envelope) }

// Content returns the layer of a file.
func Content(f atelier.File, open func() (io.ReadCloser, error)) Source {
	return Source{Descriptor{
		MediaType: TypeContent, Digest: f.Digest, Size: f.Size, Annotations: map[string]string{annotationTitle: f.Path},
	}, open}
}

// Changes returns the layer of a difference.
func Changes(digest atelier.Digest, size int64, open func() (io.ReadCloser, error)) Source {
	return Source{Descriptor{MediaType: TypeDifference, Digest: digest, Size: size}, open}
}

// held returns a blob that is in memory.
func held(mediaType, artifactType string, b []byte) Source {
	return Source{
		Descriptor{MediaType: mediaType, ArtifactType: artifactType, Digest: atelier.DigestOf(b), Size: int64(len(b))},
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
	}
}

// Layout is a bundle to be written.
type Layout struct {
	created time.Time
	files   []named
	// Digest names the bundle: it is its manifest's.
	Digest atelier.Digest
}

type named struct {
	name string
	Source
}

// Build lays a bundle out, with layers in the order in which they are to be
// written. sign returns a DSSE envelope by the workspace's state key. TooLarge for
// more layers or devices than a reader takes.
func Build(c Config, layers []Source, sign func(payloadType string, payload []byte) ([]byte, error)) (*Layout, error) {
	config, err := encoded(TypeConfig, "", c)
	if err != nil {
		return nil, err
	}
	m := manifest{
		SchemaVersion: 2, MediaType: typeManifest, ArtifactType: TypeBundle, Config: config.Descriptor,
		Annotations: map[string]string{annotationTime: c.Created.UTC().Format(time.RFC3339)},
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Descriptor)
	}
	self, err := encoded(typeManifest, TypeBundle, m)
	if err != nil {
		return nil, err
	}
	subject := self.Descriptor
	subject.ArtifactType = ""
	statement, err := json.Marshal(Statement{subject})
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode a statement: %w", err)
	}
	envelope, err := sign(TypeStatement, statement)
	if err != nil {
		return nil, err
	}
	signature, empty := held(TypeEnvelope, "", envelope), held(typeEmpty, "", []byte("{}"))
	referrer, err := encoded(typeManifest, TypeSignature, manifest{
		SchemaVersion: 2, MediaType: typeManifest, ArtifactType: TypeSignature, Config: empty.Descriptor,
		Layers: []Descriptor{signature.Descriptor}, Subject: &subject,
	})
	if err != nil {
		return nil, err
	}
	entry := self.Descriptor
	entry.Annotations = map[string]string{annotationName: RefName}
	list, err := encoded("", "", index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []Descriptor{entry, referrer.Descriptor}})
	if err != nil {
		return nil, err
	}
	version, err := encoded("", "", ociLayout{layoutVersion})
	if err != nil {
		return nil, err
	}
	out := &Layout{created: c.Created, files: []named{{layoutFile, version}, {indexFile, list}}, Digest: self.Digest}
	seen := map[atelier.Digest]bool{}
	for _, s := range append([]Source{self, config, referrer, signature, empty}, layers...) {
		if !seen[s.Digest] {
			seen[s.Digest] = true
			out.files = append(out.files, named{blobsDir + s.Digest.Hex(), s})
		}
	}
	return out, nil
}

func encoded(mediaType, artifactType string, v any) (Source, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return Source{}, atelier.Errorf(atelier.Internal, "encode a part of a bundle: %w", err)
	}
	if len(b) > maxJSON {
		return Source{}, atelier.Errorf(atelier.TooLarge, "the bundle's description would have %s, at most %s are allowed",
			atelier.FormatBytes(int64(len(b))), atelier.FormatBytes(maxJSON)).WithRemedy("Export bundles for fewer devices each.")
	}
	return held(mediaType, artifactType, b), nil
}

func (l *Layout) header(f named) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: f.Size, Mode: 0o644, ModTime: l.created.UTC().Truncate(time.Second)}
}

// tarBlock is what everything in a tar file is rounded up to, and tarEnd what
// follows the last file.
const (
	tarBlock = 512
	tarEnd   = 2 * tarBlock
)

// TarSize returns how many bytes WriteTar writes.
func (l *Layout) TarSize() (int64, error) {
	size := int64(tarEnd)
	for _, f := range l.files {
		var head bytes.Buffer
		if err := tar.NewWriter(&head).WriteHeader(l.header(f)); err != nil {
			return 0, atelier.Errorf(atelier.Internal, "lay out a tar file: %w", err)
		}
		size += int64(head.Len()) + (f.Size+tarBlock-1)/tarBlock*tarBlock
	}
	return size, nil
}

// WriteTar writes the layout as a tar file; Corrupt where a layer is not what its
// descriptor says. After an error what was written is
// no bundle.
func (l *Layout) WriteTar(ctx context.Context, w io.Writer) error {
	t := tar.NewWriter(w)
	for _, f := range l.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.WriteHeader(l.header(f)); err != nil {
			return err
		}
		if err := f.copyTo(t); err != nil {
			return err
		}
	}
	return t.Close()
}

func (s *Source) copyTo(w io.Writer) error {
	r, err := s.Open()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // it was open for reading only
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), r)
	if got := atelier.DigestFrom(sum); err == nil && (n != s.Size || got != s.Digest) {
		err = atelier.Errorf(atelier.Corrupt, "%s has %d bytes with the digest %s, expected %d", title(s.Descriptor), n, got, s.Size)
	}
	return err
}
