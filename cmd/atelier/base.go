package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) baseCommand() *cobra.Command {
	return group("base", "Add the root file systems that packages stand on",
		a.baseAdd(), a.baseList(), a.baseShow(),
		a.inWorkspace("delete NAME", "Delete a base on which no package stands", "Deleted base %s.", (*client.Client).DeleteBase))
}

func (a *app) baseAdd() *cobra.Command {
	var arch []string
	var description string
	var plain bool
	cmd := &cobra.Command{
		Use:   "add NAME SOURCE",
		Short: "Add an image, or a tar file of a root file system, as a base",
		Long: `Add an image, or a tar file of a root file system, as a base. It is sent to the hub once, and all packages on it share its layers.

SOURCE is an image of any OCI registry (the tools' own log-ins are used: docker login, skopeo login, oras login), a directory that is an OCI
layout (DIR or DIR:TAG), or a file .tar such as 'make base' builds out of Debian's packages. A base needs glibc; for ONNX models
the C++ library besides.`,
		Example: `  atelier base add debian bin/base-amd64.tar
  atelier base add ubi registry.example/ubi9/ubi-minimal@sha256:…
  atelier base add ours hub.example:8443/plant-7/base:3 --arch amd64`,
		Args: exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			b, err := a.addBase(cmd.Context(), cl, ws, client.NewBase{Name: args[0], Description: description, Source: args[1]}, arch, plain)
			if err != nil {
				return err
			}
			a.say("Added base %s", b.Name)
			return a.print(b, func() table { return baseTable(b) })
		},
	}
	cmd.Flags().StringArrayVar(&arch, "arch", nil, "architecture to take of an image that has several, or that a tar file is for; may be repeated (default: all, or this machine's)")
	cmd.Flags().StringVar(&description, "description", "", "what is in it")
	cmd.Flags().BoolVar(&plain, "plain-http", false, "speak to the registry without TLS")
	return cmd
}

// addBase sends a base to the hub and registers it.
func (a *app) addBase(ctx context.Context, cl *client.Client, ws string, n client.NewBase, arch []string, plain bool) (atelier.Base, error) {
	if err := atelier.CheckName("base", n.Name); err != nil {
		return atelier.Base{}, err
	}
	var err error
	if isTar(n.Source) {
		n.Images, err = a.baseOfTar(ctx, cl, ws, n.Source, arch)
	} else {
		n.Images, err = a.baseOfImage(ctx, cl, ws, n.Source, arch, plain)
	}
	if err != nil {
		return atelier.Base{}, err
	}
	return cl.AddBase(ctx, ws, n)
}

// baseOfTar makes an image of a tar file: its one layer.
func (a *app) baseOfTar(ctx context.Context, cl *client.Client, ws, name string, arch []string) ([]atelier.BaseImage, error) {
	if len(arch) > 1 {
		return nil, errUsage{errors.New("a tar file is for one architecture; add one base for each")}
	}
	of := runtime.GOARCH
	if len(arch) == 1 {
		of = arch[0]
	}
	local, err := localFiles([]string{name})
	if err != nil {
		return nil, err
	}
	files, err := a.upload(ctx, cl, ws, local)
	if err != nil {
		return nil, err
	}
	layer := files[0]
	config, err := json.Marshal(map[string]any{
		"architecture": of, "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []atelier.Digest{layer.Digest}},
	})
	if err != nil {
		return nil, err
	}
	d := atelier.DigestOf(config)
	if _, err := cl.UploadBlob(ctx, ws, strings.NewReader(string(config)), int64(len(config)), d); err != nil {
		return nil, err
	}
	return []atelier.BaseImage{{
		Arch: of, Config: atelier.File{Path: "config.json", Digest: d, Size: int64(len(config))},
		Layers: []atelier.Layer{{Kind: atelier.LayerBase, MediaType: ocispec.MediaTypeImageLayer, Digest: layer.Digest, Size: layer.Size}},
	}}, nil
}

// baseArchitectures are those that packages are made for.
var baseArchitectures = []string{"amd64", "arm64"}

// baseOfImage sends an image, or those of an index for the architectures.
func (a *app) baseOfImage(ctx context.Context, cl *client.Client, ws, from string, arch []string, plain bool) ([]atelier.BaseImage, error) {
	source, ref, err := a.source(ctx, from, plain)
	if err != nil {
		return nil, err
	}
	root, err := source.Resolve(ctx, ref)
	if err != nil {
		return nil, unpulled("find "+from, err)
	}
	manifests, err := manifestsOf(ctx, source, root, arch)
	if err != nil {
		return nil, unpulled("read "+from, err)
	}
	var all []atelier.BaseImage
	for _, d := range manifests {
		img, err := a.pullBase(ctx, cl, ws, source, d)
		if err != nil {
			return nil, unpulled("pull "+from, err)
		}
		all = append(all, img)
	}
	if len(all) == 0 {
		return nil, atelier.Errorf(atelier.Invalid, "%s has no image for linux on %s", from, strings.Join(arch, ", ")).
			WithRemedy("Packages are for %s; name those that the image has with --arch.", strings.Join(baseArchitectures, " and "))
	}
	return all, nil
}

// manifestsOf returns the manifests of root for the architectures, all that are known
// where none is named.
func manifestsOf(ctx context.Context, source oras.ReadOnlyTarget, root ocispec.Descriptor, arch []string) ([]ocispec.Descriptor, error) {
	if !strings.Contains(root.MediaType, "index") && !strings.Contains(root.MediaType, "list") {
		return []ocispec.Descriptor{root}, nil
	}
	body, err := content.FetchAll(ctx, source, root)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(body, &index); err != nil {
		return nil, fmt.Errorf("the index cannot be read: %w", err)
	}
	if len(arch) == 0 {
		arch = baseArchitectures
	}
	var found []ocispec.Descriptor
	for _, want := range arch {
		i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == want
		})
		if i >= 0 {
			found = append(found, index.Manifests[i])
		}
	}
	return found, nil
}

// pullBase sends an image's configuration and layers to the hub, as they come.
func (a *app) pullBase(ctx context.Context, cl *client.Client, ws string, source oras.ReadOnlyTarget, d ocispec.Descriptor) (img atelier.BaseImage, err error) {
	body, err := content.FetchAll(ctx, source, d)
	if err != nil {
		return img, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return img, fmt.Errorf("the manifest cannot be read: %w", err)
	}
	total := m.Config.Size
	for _, l := range m.Layers {
		total += l.Size
	}
	p := a.newProgress("Pulling", total)
	defer p.finish()
	send := func(d ocispec.Descriptor) error {
		digest := atelier.Digest(d.Digest)
		if _, err := atelier.ParseDigest(string(digest)); err != nil {
			return err
		}
		there, err := cl.HasBlob(ctx, ws, digest)
		if err != nil || there {
			p.add(d.Size)
			return err
		}
		in, err := source.Fetch(ctx, d)
		if err != nil {
			return err
		}
		// The hub refuses what has not the digest.
		_, err = cl.UploadBlob(ctx, ws, io.TeeReader(io.LimitReader(in, d.Size), p), d.Size, digest)
		return errors.Join(err, in.Close())
	}
	if err := send(m.Config); err != nil {
		return img, err
	}
	img.Config = atelier.File{Path: "config.json", Digest: atelier.Digest(m.Config.Digest), Size: m.Config.Size}
	for _, l := range m.Layers {
		if err := send(l); err != nil {
			return img, err
		}
		img.Layers = append(img.Layers, atelier.Layer{Kind: atelier.LayerBase, MediaType: l.MediaType, Digest: atelier.Digest(l.Digest), Size: l.Size})
	}
	return img, nil
}

func (a *app) baseList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List what packages may stand on", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Bases(cmd.Context(), ws))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				t := table{head: []string{"NAME", "ARCH", "SIZE", "SOURCE", "ADDED"}}
				for _, b := range all {
					var arch, size []string
					for i := range b.Images {
						arch, size = append(arch, b.Images[i].Arch), append(size, atelier.FormatBytes(b.Images[i].Size()))
					}
					t.add(b.Name, strings.Join(arch, ", "), strings.Join(size, ", "), b.Source, ago(b.Created))
				}
				if len(all) == 0 {
					t.note = "There is no base yet; add one with 'atelier base add NAME SOURCE'."
				}
				return t
			})
		},
	}
}

func (a *app) baseShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a base and its layers", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			b, err := cl.Base(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			return a.print(b, func() table { return baseTable(b) })
		},
	}
}

func baseTable(b atelier.Base) table {
	t := table{about: [][]string{{"Base:", b.Name}, {"Source:", b.Source}}, head: []string{"ARCH", "LAYER", "SIZE"}}
	if b.Description != "" {
		t.about = append(t.about, []string{"Description:", b.Description})
	}
	for _, img := range b.Images {
		for _, l := range img.Layers {
			t.add(img.Arch, shortDigest(string(l.Digest)), atelier.FormatBytes(l.Size))
		}
	}
	return t
}
