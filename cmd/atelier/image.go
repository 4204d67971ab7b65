package main

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) imageCommand() *cobra.Command {
	everything := false
	list := &cobra.Command{
		Use: "list [REPOSITORY]", Short: "List the images of the workspace's container registry", Aliases: []string{"ls"}, Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Images(cmd.Context(), ws, strings.Join(args, "")))
			if err != nil {
				return err
			}
			if !everything {
				all = slices.DeleteFunc(all, func(img atelier.Image) bool { return img.Subject != "" })
			}
			return a.print(all, func() table { return imageTable(all, cl, ws) })
		},
	}
	list.Flags().BoolVarP(&everything, "all", "a", false, "also what is about images: signatures, SBOMs and lineages")
	show := &cobra.Command{
		Use: "show REPOSITORY:TAG|REPOSITORY@DIGEST", Short: "Show an image and what it is made of", Args: exactly(1),
		Example: "  atelier image show press/cell:1.4",
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			img, err := cl.Image(cmd.Context(), ws, args[0])
			if err != nil {
				return err
			}
			return a.print(img, func() table { return oneImageTable(img) })
		},
	}
	remove := a.inWorkspace("delete REPOSITORY[:TAG|@DIGEST]", "Take a tag away, or delete an image or a repository", "Deleted %s.", (*client.Client).DeleteImage)
	remove.Long = `Take a tag away (REPOSITORY:TAG), delete an image with all its tags (REPOSITORY@DIGEST), or a repository with all that is in it
(REPOSITORY). An image without tags stays, under its digest, until it is deleted. Layers are let go of once no image needs them.`
	remove.Example = `  atelier image delete press/cell:1.3
  atelier image delete press/cell@sha256:…`
	cmd := group("image", "Show, sign and delete the images of the workspace's container registry", list, show, a.imageSign(), remove)
	cmd.Long = `Show, sign and delete the images of the workspace's container registry.

Images come from container tools: the hub is a registry, in which the workspace's name begins the image's. Log in with any user
name and an access token as the password, for example

  skopeo login HUB:8443 --username me --password atl_…
  skopeo copy docker://docker.io/library/alpine docker://HUB:8443/WORKSPACE/alpine:3.20`
	return cmd
}

func imageTable(all []atelier.Image, cl *client.Client, ws string) table {
	t := table{head: []string{"REPOSITORY", "TAGS", "DIGEST", "KIND", "SIZE", "SIGNED", "PUSHED"}}
	for _, img := range all {
		t.add(img.Repository, firstOf(strings.Join(img.Tags, ", "), "none"), shortDigest(img.Digest), imageKind(img), atelier.FormatBytes(img.Total), signedBy(img), ago(img.Created))
	}
	if len(all) == 0 {
		t.note = "There is no image yet; push one to " + strings.TrimPrefix(cl.Hub(), "https://") + "/" + ws + "/NAME: see 'atelier image --help'."
	}
	return t
}

// imageKind says in a word what an image is.
func imageKind(img atelier.Image) string {
	switch {
	case img.Subject != "":
		return "about " + shortDigest(img.Subject)
	case strings.Contains(img.MediaType, "index") || strings.Contains(img.MediaType, "list"):
		return "index"
	case strings.HasPrefix(img.ArtifactType, "application/vnd.oci.image.config") || strings.HasPrefix(img.ArtifactType, "application/vnd.docker.container.image"):
		return "image"
	}
	return firstOf(img.ArtifactType, "image")
}

// shortDigest is a digest for people to read; it identifies nothing.
func shortDigest(digest string) string {
	algorithm, hexa, _ := strings.Cut(digest, ":")
	return algorithm + ":" + hexa[:min(12, len(hexa))]
}

func oneImageTable(img client.Image) table {
	t := table{
		about: [][]string{
			{"Repository:", img.Repository},
			{"Digest:", img.Digest},
			{"Kind:", imageKind(img.Image)},
			{"Media type:", img.MediaType},
			{"Size:", atelier.FormatBytes(img.Total)},
			{"Pushed:", img.Created.Local().Format("2006-01-02 15:04")},
			{"Tags:", firstOf(strings.Join(img.Tags, ", "), "none")},
			{"Signed:", signedBy(img.Image)},
		},
		head: []string{"PART", "DIGEST", "SIZE"},
	}
	if img.Subject != "" {
		t.about = append(t.about, []string{"About:", img.Subject})
	}
	type part struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int64  `json:"size"`
		Platform  *struct {
			OS           string `json:"os"`
			Architecture string `json:"architecture"`
		} `json:"platform"`
	}
	var m struct {
		Config            *part
		Layers, Manifests []part
	}
	if json.Unmarshal(img.Manifest, &m) != nil { // the hub has read it, and takes no other
		return t
	}
	add := func(what string, p part) {
		if p.Platform != nil {
			what = p.Platform.OS + "/" + p.Platform.Architecture
		}
		t.add(what, shortDigest(p.Digest), atelier.FormatBytes(p.Size))
	}
	if m.Config != nil {
		add("config", *m.Config)
	}
	for _, l := range m.Layers {
		add("layer", l)
	}
	for _, i := range m.Manifests {
		add("image", i)
	}
	return t
}
