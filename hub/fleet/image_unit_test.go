package fleet

import (
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// TestImageModule sees which devices get an image, and what the others are told.
func TestImageModule(t *testing.T) {
	t.Parallel()
	part := func(s string) atelier.ImagePlatform {
		file := func(name string) atelier.File {
			return atelier.File{Path: "image/" + name, Digest: atelier.DigestOf([]byte(s + name)), Size: 1}
		}
		return atelier.ImagePlatform{OS: "linux", Arch: s, ImageContent: atelier.ImageContent{
			Manifest: file("manifest.json"), Config: file("config.json"), Layers: []atelier.ImageLayer{{File: file("layer-1")}},
		}}
	}
	dep := &planned{Deployment: atelier.Deployment{
		Meta: atelier.Meta{ID: "d", Name: "cell"}, Rollout: "r",
		Image: &atelier.DeploymentImage{Reference: "press/cell:1", Platforms: []atelier.ImagePlatform{part("amd64"), part("arm64")}},
	}}
	with := []string{"process", atelier.TargetContainerd}
	for name, c := range map[string]struct {
		facts  atelier.Facts
		reason atelier.Reason // "" where it gets one
	}{
		"amd64":            {atelier.Facts{OS: "linux", Arch: "amd64", Targets: with}, ""},
		"arm64":            {atelier.Facts{OS: "linux", Arch: "arm64", Targets: with}, ""},
		"another platform": {atelier.Facts{OS: "linux", Arch: "riscv64", Targets: with}, atelier.ReasonVariantMissing},
		"no containerd":    {atelier.Facts{OS: "linux", Arch: "amd64", Targets: with[:1]}, atelier.ReasonUnsupportedFeature},
	} {
		m, why := (&plan{}).module(dep, &atelier.Device{Meta: atelier.Meta{Name: "press"}, Facts: c.facts}, nil)
		switch {
		case c.reason == "" && (why != nil || m.Image == nil || len(m.Content()) != 3 || m.Package != atelier.DigestOf([]byte(c.facts.Arch+"manifest.json")) || m.Target != atelier.TargetContainerd):
			t.Errorf("%s: %+v %v", name, m, why)
		case c.reason != "" && (why == nil || why.Reason() != c.reason || why.Remedy() == ""):
			t.Errorf("%s: %v, want %s", name, why, c.reason)
		}
	}
}
