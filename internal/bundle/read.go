package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	atelier "github.com/atelier-edge/atelier"
)

// Bundle is an open bundle. Use it from one goroutine, and Close it.
type Bundle struct {
	layout    layout
	manifest  manifest
	self      Descriptor // of the manifest
	config    Config
	layers    map[atelier.Digest]Descriptor
	signature []byte // the envelope; nil where there is none
}

// Open opens the bundle at path, a directory or a tar file, and reads what
// describes it; the signature is not looked at yet (see Verify). The error is an
// *Error: ReasonBundleIncomplete where something is not there yet, or not as a
// whole, ReasonBundleInvalid for what is no bundle, ReasonDigestMismatch,
// ReasonUnsupportedFeature, ReasonBundleUnreadable where the medium fails.
func Open(path string) (*Bundle, error) {
	l, err := openLayout(path)
	if err != nil {
		return nil, err
	}
	b := &Bundle{layout: l}
	if err := b.load(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return b, nil
}

// Close ends reading.
func (b *Bundle) Close() error { return b.layout.Close() }

func (b *Bundle) load() error {
	var version ociLayout
	if err := b.document(layoutFile, &version); err != nil {
		return err
	}
	if version.Version != layoutVersion {
		return invalid("the layout has version %.80q, expected %s", version.Version, layoutVersion)
	}
	var list index
	if err := b.document(indexFile, &list); err != nil {
		return err
	}
	if len(list.Manifests) > maxManifests {
		return invalid("the index names %d manifests, at most %d are allowed", len(list.Manifests), maxManifests)
	}
	var signatures []manifest
	for i := range list.Manifests {
		d := &list.Manifests[i]
		if err := d.check("a manifest"); err != nil {
			return err
		}
		m, err := b.readManifest(d)
		if err != nil {
			return err
		}
		switch m.ArtifactType {
		case TypeBundle:
			if b.manifest.ArtifactType != "" {
				return invalid("the layout holds more than one bundle")
			}
			b.manifest, b.self = m, *d
		case TypeSignature:
			signatures = append(signatures, m)
		}
	}
	if b.manifest.ArtifactType == "" {
		return invalid("the layout holds no artifact of type %s", TypeBundle)
	}
	if err := b.readSignature(signatures); err != nil {
		return err
	}
	return b.readConfig()
}

func (b *Bundle) readManifest(d *Descriptor) (m manifest, err error) {
	raw, err := b.read(*d, maxJSON)
	if err == nil {
		err = decode("a manifest", raw, &m)
	}
	if err == nil {
		err = m.check()
	}
	return m, err
}

// readSignature reads the one that refers to the bundle; that there is none is
// for Verify to say.
func (b *Bundle) readSignature(all []manifest) (err error) {
	for _, m := range all {
		if m.Subject != nil && m.Subject.Digest == b.self.Digest && len(m.Layers) == 1 {
			b.signature, err = b.read(m.Layers[0], maxJSON)
			return err
		}
	}
	return nil
}

func (b *Bundle) readConfig() error {
	if b.manifest.Config.MediaType != TypeConfig {
		return invalid("the bundle's config is of type %.80q, expected %s", b.manifest.Config.MediaType, TypeConfig)
	}
	raw, err := b.read(b.manifest.Config, maxJSON)
	if err != nil {
		return err
	}
	if err := decode("the bundle's config", raw, &b.config); err != nil {
		return err
	}
	for _, feature := range b.config.Requires {
		if !slices.Contains(Features, feature) {
			return Refuse(atelier.ReasonUnsupportedFeature, atelier.Unsupported, "the bundle needs %.80q, which this agent does not have", feature)
		}
	}
	b.layers = make(map[atelier.Digest]Descriptor, len(b.manifest.Layers))
	for _, l := range b.manifest.Layers {
		b.layers[l.Digest] = l
	}
	return b.config.check()
}

// Config returns what the bundle says of itself. Nothing of it may be believed
// before Verify, except that what it holds as Trust proves itself.
func (b *Bundle) Config() *Config { return &b.config }

// Digest returns the digest of the bundle's manifest, which names it.
func (b *Bundle) Digest() atelier.Digest { return b.self.Digest }

// Verify checks the signature with open, which returns what an envelope carries
// that a trusted key signed, as trust.Open does. The error is an *Error or what
// open returned.
func (b *Bundle) Verify(open func(envelope []byte) (payloadType string, payload []byte, err error)) error {
	if b.signature == nil {
		return Refuse(atelier.ReasonSignatureInvalid, atelier.Unauthenticated, "the bundle is not signed").
			remedy("Export it with 'atelier bundle export', and copy it as a whole.")
	}
	payloadType, payload, err := open(b.signature)
	if err != nil {
		return fmt.Errorf("the bundle's signature: %w", err)
	}
	var s Statement
	if payloadType != TypeStatement || decode("the signed statement", payload, &s) != nil {
		return Refuse(atelier.ReasonSignatureInvalid, atelier.Unauthenticated, "the bundle's signature is over %.80q, expected %s", payloadType, TypeStatement)
	}
	if s.Manifest.Digest != b.self.Digest || s.Manifest.Size != b.self.Size {
		return Refuse(atelier.ReasonSignatureInvalid, atelier.Unauthenticated, "the signature is another bundle's: it is over %.80s, this is %s", s.Manifest.Digest, b.self.Digest)
	}
	return nil
}

func (e *Error) remedy(text string) *Error {
	e.Err = e.Err.WithRemedy("%s", text)
	return e
}

// Complete checks that every layer is there with the size that it shall have:
// ReasonBundleIncomplete where one is missing or shorter.
func (b *Bundle) Complete() error {
	for _, l := range b.manifest.Layers {
		if err := b.whole(l); err != nil {
			return err
		}
	}
	return nil
}

// whole checks that the blob of d is there, all of it.
func (b *Bundle) whole(d Descriptor) error {
	size, err := b.layout.size(blobsDir + d.Digest.Hex())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return incomplete("%s of %s is missing", title(d), atelier.FormatBytes(d.Size))
	case err != nil:
		return err
	case size < d.Size:
		return incomplete("%s has %d bytes, expected %d", title(d), size, d.Size)
	case size > d.Size:
		return invalid("%s has %d bytes, expected %d", title(d), size, d.Size)
	}
	return nil
}

// title names a blob to people.
func title(d Descriptor) string {
	if t := d.Annotations[annotationTitle]; t != "" {
		return fmt.Sprintf("%.80q (%s)", t, d.Digest.Short())
	}
	return "the blob " + d.Digest.Short()
}

// Has reports whether content is in the bundle, and how many bytes of it.
func (b *Bundle) Has(d atelier.Digest) (size int64, ok bool) {
	l, ok := b.layers[d]
	return l.Size, ok
}

// Difference returns the difference that brings content, nil where there is none.
func (b *Bundle) Difference(d atelier.Digest) *Difference {
	for i := range b.config.Files {
		if f := &b.config.Files[i]; f.Digest == d {
			return f.Difference
		}
	}
	return nil
}

// Read returns a layer of at most limit bytes, verified against its digest.
func (b *Bundle) Read(d atelier.Digest, limit int64) ([]byte, error) {
	l, ok := b.layers[d]
	if !ok {
		return nil, invalid("the bundle lists no layer %.80s", d)
	}
	return b.read(l, limit)
}

// Layer is open content.
type Layer struct {
	*io.SectionReader
	blob blob
}

// Close gives the file back.
func (l *Layer) Close() error { return l.blob.Close() }

// Layer opens content for reading, which nobody has verified.
func (b *Bundle) Layer(d atelier.Digest) (*Layer, error) {
	l, ok := b.layers[d]
	if !ok {
		return nil, invalid("the bundle lists no layer %.80s", d)
	}
	if err := b.whole(l); err != nil {
		return nil, err
	}
	f, err := b.layout.open(blobsDir + d.Hex())
	if err != nil {
		return nil, err
	}
	return &Layer{io.NewSectionReader(f, 0, l.Size), f}, nil
}

// read returns the blob of d, which was checked, verified against its digest.
func (b *Bundle) read(d Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, invalid("%s has %s, at most %s are allowed", title(d), atelier.FormatBytes(d.Size), atelier.FormatBytes(limit))
	}
	if err := b.whole(d); err != nil {
		return nil, err
	}
	raw, err := b.file(blobsDir+d.Digest.Hex(), d.Size)
	if err != nil {
		return nil, err
	}
	if got := atelier.DigestOf(raw); got != d.Digest {
		return nil, Refuse(atelier.ReasonDigestMismatch, atelier.Corrupt, "%s has the digest %s, expected %s", title(d), got, d.Digest).
			remedy("Copy the bundle to the device again.")
	}
	return raw, nil
}

// document reads one of the two files that have a name.
func (b *Bundle) document(name string, v any) error {
	size, err := b.layout.size(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return incomplete("%s is missing", name)
	case err != nil:
		return err
	case size > maxJSON:
		return invalid("%s has %d bytes, at most %d are allowed", name, size, maxJSON)
	}
	raw, err := b.file(name, size)
	if err != nil {
		return err
	}
	err = decode(name, raw, v)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return incomplete("%s ends in the middle", name) // no digest tells how long it shall be
	}
	return err
}

// file returns the first size bytes of a file.
func (b *Bundle) file(name string, size int64) (raw []byte, err error) {
	f, err := b.layout.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	raw = make([]byte, size)
	switch n, err := f.ReadAt(raw, 0); {
	case int64(n) == size:
		return raw, nil
	case errors.Is(err, io.EOF):
		return nil, incomplete("%s became shorter while it was read", name)
	default:
		return nil, unreadable(err)
	}
}
