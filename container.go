package atelier

import (
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// TargetContainerd is the kind of target that runs container images.
const TargetContainerd = "containerd"

// ImageContent is what a container image is made of, for one platform.
type ImageContent struct {
	Manifest File         `json:"manifest"`
	Config   File         `json:"config"`
	Layers   []ImageLayer `json:"layers"`
}

// ImageLayer is one layer of a container image.
type ImageLayer struct {
	File
	MediaType string `json:"media_type"`
	// Annotations are those of its descriptor in the manifest.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Files returns manifest, configuration and layers.
func (c *ImageContent) Files() []File {
	files := []File{c.Manifest, c.Config}
	for i := range c.Layers {
		files = append(files, c.Layers[i].File)
	}
	return files
}

// ImagePlatform is what an image is made of for one platform, in Go's words.
type ImagePlatform struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
	ImageContent
	// Signature is the DSSE envelope over the manifest's digest that devices verify.
	Signature []byte `json:"signature"`
}

// DeploymentImage is the container image that a deployment runs in place of a model.
type DeploymentImage struct {
	// Reference is what was asked for, REPOSITORY:TAG or REPOSITORY@DIGEST.
	Reference string `json:"reference"`
	// Digest is what the reference stood for when it was deployed: a tag that moves
	// afterwards changes nothing.
	Digest    Digest            `json:"digest"`
	Platforms []ImagePlatform   `json:"platforms"`
	Container ContainerSettings `json:"container"`
}

// Files returns all content of the image, each once.
func (d *DeploymentImage) Files() []File {
	var files []File
	seen := map[Digest]bool{}
	for i := range d.Platforms {
		for _, f := range d.Platforms[i].Files() {
			if !seen[f.Digest] {
				seen[f.Digest] = true
				files = append(files, f)
			}
		}
	}
	return files
}

// Platform returns what the image is made of for a platform, nil where it is not made for it.
func (d *DeploymentImage) Platform(os, arch string) *ImagePlatform {
	for i := range d.Platforms {
		if p := &d.Platforms[i]; p.OS == os && p.Arch == arch {
			return p
		}
	}
	return nil
}

// platformNames returns the platforms that the image is made for, in words.
func (d *DeploymentImage) platformNames() []string {
	var names []string
	for i := range d.Platforms {
		names = append(names, d.Platforms[i].OS+"/"+d.Platforms[i].Arch)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// PlatformList names the platforms that the image is made for.
func (d *DeploymentImage) PlatformList() string { return strings.Join(d.platformNames(), ", ") }

// ModuleImage is the container image that a module runs.
type ModuleImage struct {
	Reference string `json:"reference"`
	ImageContent
	Container ContainerSettings `json:"container"`
	// Signature is a DSSE envelope over the manifest's digest, empty where the image has none.
	Signature []byte `json:"signature,omitempty"`
}

// ContainerSettings say how a container runs, beyond what its image says.
type ContainerSettings struct {
	// Entrypoint and Args replace the image's where they are not empty.
	Entrypoint []string `json:"entrypoint,omitempty"`
	Args       []string `json:"args,omitempty"`
	// Env are further environment variables, NAME=value.
	Env []string `json:"env,omitempty"`
	// Port is where the container listens, on 127.0.0.1 or on all addresses, for what its
	// endpoint is asked; it finds the number in PORT. 0 for one that has no endpoint.
	Port int `json:"port,omitempty"`
	// Network is "" for a network of the container's own, with nothing in it but its loopback,
	// and "host" for the device's.
	Network string           `json:"network,omitempty"`
	Probe   *ContainerProbe  `json:"probe,omitempty"`
	Devices []string         `json:"devices,omitempty"` // such as /dev/ttyUSB0; a directory is all in it
	Mounts  []ContainerMount `json:"mounts,omitempty"`
	// Processes bounds how many processes and threads it may have; 0 is 2048.
	Processes int64 `json:"processes,omitempty"`
}

// ContainerMount shows a directory or file of the device to a container.
type ContainerMount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	Writable bool   `json:"writable,omitempty"`
}

// The kinds of probes.
const (
	ProbeHTTP = "http" // GET Path is answered with 200 to 399
	ProbeTCP  = "tcp"  // the port takes connections
	ProbeExec = "exec" // Command, run in the container, ends with 0
)

// ContainerProbe tells whether a container is well. Without one, a container with a port is asked
// whether it takes connections, and another is well while it runs.
type ContainerProbe struct {
	Kind    string   `json:"kind"`
	Path    string   `json:"path,omitempty"`
	Command []string `json:"command,omitempty"`
}

// NetworkHost is the device's network.
const NetworkHost = "host"

// DefaultProcesses is how many processes and threads a container may have that says nothing of it.
const DefaultProcesses = 2048

// Bounds of what settings may say.
const (
	maxContainerWords = 64      // of a command, variables, devices, mounts
	maxContainerText  = 8 << 10 // bytes of one
)

// Check returns an Invalid error for settings that cannot be.
func (c *ContainerSettings) Check() error {
	bad := func(field, format string, args ...any) error {
		return Errorf(Invalid, format, args...).WithField("container." + field)
	}
	for field, words := range map[string][]string{"entrypoint": c.Entrypoint, "args": c.Args, "env": c.Env, "devices": c.Devices} {
		if len(words) > maxContainerWords {
			return bad(field, "there are %d %s; at most %d are taken", len(words), field, maxContainerWords)
		}
		for _, w := range words {
			if len(w) > maxContainerText || !utf8.ValidString(w) || strings.ContainsRune(w, 0) {
				return bad(field, "%.80q is not UTF-8 text of at most %d bytes", w, maxContainerText)
			}
		}
	}
	for _, e := range c.Env {
		if strings.IndexByte(e, '=') < 1 {
			return bad("env", "the environment variable %.80q is not NAME=value", e)
		}
	}
	for _, d := range c.Devices {
		if !strings.HasPrefix(d, "/dev/") || path.Clean(d) != d {
			return bad("devices", "%.80q is no path below /dev", d)
		}
	}
	if len(c.Mounts) > maxContainerWords {
		return bad("mounts", "there are %d mounts; at most %d are taken", len(c.Mounts), maxContainerWords)
	}
	for _, m := range c.Mounts {
		if err := m.check(); err != nil {
			return err
		}
	}
	switch {
	case c.Port < 0 || c.Port > 65535:
		return bad("port", "the port %d is not between 1 and 65535", c.Port)
	case c.Network != "" && c.Network != NetworkHost:
		return bad("network", "the network %.80q is not known; expected was none, or %q", c.Network, NetworkHost)
	case c.Processes < 0 || c.Processes > 4<<20:
		return bad("processes", "a limit of %d processes is not possible", c.Processes)
	}
	return c.Probe.check(c.Port)
}

func (m ContainerMount) check() error {
	for _, p := range []string{m.Source, m.Target} {
		if !path.IsAbs(p) || path.Clean(p) != p || len(p) > 4096 || !utf8.ValidString(p) || strings.ContainsAny(p, "\x00:") || p == "/" {
			return Errorf(Invalid, "the mount of %.80q on %.80q does not name two absolute paths", m.Source, m.Target).WithField("container.mounts").
				WithRemedy("Write it as /on/the/device:/in/the/container, and :rw behind it where the container may write.")
		}
	}
	return nil
}

func (p *ContainerProbe) check(port int) error {
	if p == nil {
		return nil
	}
	bad := func(format string, args ...any) error {
		return Errorf(Invalid, format, args...).WithField("container.probe").
			WithRemedy("Probe with http:/PATH, tcp or exec:COMMAND.")
	}
	switch p.Kind {
	case ProbeHTTP:
		if !strings.HasPrefix(p.Path, "/") || len(p.Path) > 2048 || strings.ContainsAny(p.Path, " \r\n\x00") {
			return bad("the path %.80q of the probe does not begin with '/', or is no path", p.Path)
		}
	case ProbeTCP:
	case ProbeExec:
		if len(p.Command) == 0 || len(p.Command) > maxContainerWords {
			return bad("the probe has a command of %d words", len(p.Command))
		}
		for _, w := range p.Command {
			if len(w) > maxContainerText || strings.ContainsRune(w, 0) {
				return bad("the probe's command has a word of %d bytes", len(w))
			}
		}
	default:
		return bad("a probe of kind %.80q is not known", p.Kind)
	}
	if p.Kind != ProbeExec && port == 0 {
		return bad("a probe of kind %s needs a port", p.Kind)
	}
	return nil
}
