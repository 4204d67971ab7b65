package sbom

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// MediaType is what an SPDX document in JSON is called.
const MediaType = "application/spdx+json"

// Predicate is the type of an in-toto predicate that is an SPDX document.
const Predicate = "https://spdx.dev/Document"

const noAssertion = "NOASSERTION"

// The JSON form of SPDX 2.3: https://spdx.github.io/spdx-spec/v2.3/.
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	DataLicense   string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Comment       string             `json:"comment,omitempty"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Licenses      []spdxLicense      `json:"hasExtractedLicensingInfos,omitempty"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID               string         `json:"SPDXID"`
	Name             string         `json:"name"`
	Version          string         `json:"versionInfo,omitempty"`
	Purpose          string         `json:"primaryPackagePurpose,omitempty"`
	Download         string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	Checksums        []spdxChecksum `json:"checksums,omitempty"`
	LicenseConcluded string         `json:"licenseConcluded"`
	LicenseDeclared  string         `json:"licenseDeclared"`
	Copyright        string         `json:"copyrightText"`
	SourceInfo       string         `json:"sourceInfo,omitempty"`
	References       []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxLicense struct {
	ID   string `json:"licenseId"`
	Text string `json:"extractedText"`
}

type spdxRelationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

// SPDX returns the document in SPDX 2.3, as JSON.
func (d *Document) SPDX() ([]byte, error) {
	const document, image = "SPDXRef-DOCUMENT", "SPDXRef-Image"
	w := writer{ids: map[string]bool{document: true, image: true}, licenses: map[string]string{}}
	out := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: document, Name: printable(d.Name), Namespace: d.Namespace, Comment: d.Comment,
		Creation: spdxCreation{d.Created.UTC().Format(time.RFC3339), []string{"Tool: " + d.Creator}},
		Packages: []spdxPackage{{
			ID: image, Name: printable(d.Name), Version: d.Version, Purpose: "CONTAINER", Download: noAssertion,
			Checksums: checksums(d.Digest), LicenseConcluded: noAssertion, LicenseDeclared: noAssertion, Copyright: noAssertion,
		}},
		Relationships: []spdxRelationship{{document, "DESCRIBES", image}},
	}
	for _, p := range d.Packages {
		entry := w.entry(p)
		out.Packages = append(out.Packages, entry)
		out.Relationships = append(out.Relationships, spdxRelationship{image, "CONTAINS", entry.ID})
	}
	out.Licenses = w.texts
	b, err := json.Marshal(out)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode an SPDX document: %w", err)
	}
	return b, nil
}

// writer gives ids to the parts of a document.
type writer struct {
	ids      map[string]bool
	licenses map[string]string // ids by text
	texts    []spdxLicense
}

var purposes = map[Kind]string{
	Python: "LIBRARY", Debian: "LIBRARY", Alpine: "LIBRARY", Runtime: "APPLICATION", Model: "FILE", Code: "SOURCE", Base: "OPERATING-SYSTEM", File: "FILE",
}

func (w *writer) entry(p Package) spdxPackage {
	e := spdxPackage{
		ID: w.id(fmt.Sprintf("SPDXRef-%s-%s-%s", p.Kind, p.Name, p.Version)), Name: printable(p.Name), Version: printable(p.Version),
		Purpose: purposes[p.Kind], Download: noAssertion, Checksums: checksums(p.Digest),
		LicenseConcluded: noAssertion, LicenseDeclared: w.license(p.License), Copyright: noAssertion,
	}
	if p.URI != "" {
		e.SourceInfo = printable(p.URI)
	}
	if locator := purl(p); locator != "" {
		e.References = []spdxRef{{"PACKAGE-MANAGER", "purl", locator}}
	}
	return e
}

// id makes an id of letters, digits, '.' and '-' that no other part has.
func (w *writer) id(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, s)
	s = s[:min(len(s), 200)]
	id := s
	for n := 2; w.ids[id]; n++ {
		id = fmt.Sprintf("%s-%d", s, n)
	}
	w.ids[id] = true
	return id
}

// license returns an expression for what a package says of its licence.
func (w *writer) license(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return noAssertion
	}
	if expression := normal(s); expression != "" {
		return expression
	}
	id := w.licenses[s]
	if id == "" {
		id = fmt.Sprintf("LicenseRef-%d", len(w.licenses)+1)
		w.licenses[s] = id
		w.texts = append(w.texts, spdxLicense{id, printable(s)})
	}
	return id
}

func checksums(digest string) []spdxChecksum {
	algorithm, value, ok := strings.Cut(digest, ":")
	if !ok {
		return nil
	}
	return []spdxChecksum{{strings.ToUpper(algorithm), value}}
}

// purl returns a package's name as package URLs have it, "" where there is none for its kind:
// https://github.com/package-url/purl-spec.
func purl(p Package) string {
	escape := func(s string) string { return strings.ReplaceAll(url.PathEscape(s), "+", "%2B") }
	version := ""
	if p.Version != "" {
		version = "@" + escape(p.Version)
	}
	switch p.Kind {
	case Python:
		return "pkg:pypi/" + escape(strings.ReplaceAll(strings.ToLower(p.Name), "_", "-")) + version
	case Debian, Alpine:
		scheme := map[Kind]string{Debian: "deb", Alpine: "apk"}[p.Kind]
		arch := ""
		if p.Arch != "" {
			arch = "?arch=" + url.QueryEscape(p.Arch)
		}
		return "pkg:" + scheme + "/" + escape(p.Distro) + "/" + escape(p.Name) + version + arch
	}
	return ""
}

// printable takes what no text should have out of what came from an image.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}
