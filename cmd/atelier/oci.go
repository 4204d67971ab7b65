package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/retry"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// repository returns the repository of an image's reference in a registry. Who asks is
// known there as docker, skopeo and others have it in their configuration; to the hub's
// own registry as this command line is.
func (a *app) repository(reference string, plain bool) (*remote.Repository, error) {
	repo, err := remote.NewRepository(reference)
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "%.300q is no reference of an image: %w", reference, err).
			WithRemedy("Write it as REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:….")
	}
	repo.PlainHTTP = plain
	c, err := a.currentContext()
	if err != nil {
		return nil, err
	}
	if hub, err := url.Parse(c.Hub); err == nil && hub.Host == repo.Reference.Registry {
		repo.Client = &auth.Client{
			Client:     &http.Client{Transport: retry.NewTransport(&http.Transport{TLSClientConfig: trusting(c.Authority), Proxy: http.ProxyFromEnvironment})},
			Credential: auth.StaticCredential(hub.Host, auth.Credential{Username: "atelier", Password: c.Token}),
		}
		return repo, nil
	}
	store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "read the credentials of container tools: %w", err).
			WithRemedy("Mend ~/.docker/config.json, or log in again with 'docker login', 'oras login' or 'skopeo login'.")
	}
	repo.Client = &auth.Client{Client: retry.DefaultClient, Cache: auth.NewCache(), Credential: credentials.Credential(store)}
	return repo, nil
}

// trusting trusts the authority in pem besides, or the system's alone for "".
func trusting(pem string) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if pem != "" {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM([]byte(pem))
	}
	return cfg
}

// source opens where a base comes from: a directory that is an OCI layout, or an image
// of a registry. It returns the reference to resolve there.
func (a *app) source(ctx context.Context, from string, plain bool) (oras.ReadOnlyTarget, string, error) {
	dir, tag, _ := strings.Cut(from, ":")
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		layout, err := oci.NewFromFS(ctx, os.DirFS(dir))
		if err != nil {
			return nil, "", atelier.Errorf(atelier.Invalid, "%s is no OCI layout: %w", dir, err)
		}
		if tag == "" {
			tag, err = onlyTag(ctx, layout, dir)
		}
		return layout, tag, err
	}
	repo, err := a.repository(from, plain)
	if err != nil {
		return nil, "", err
	}
	return repo, repo.Reference.ReferenceOrDefault(), nil
}

// onlyTag returns the tag of a layout that has one.
func onlyTag(ctx context.Context, layout *oci.ReadOnlyStore, dir string) (string, error) {
	var all []string
	err := layout.Tags(ctx, "", func(tags []string) error {
		all = append(all, tags...)
		return nil
	})
	if err == nil && len(all) != 1 {
		err = atelier.Errorf(atelier.Invalid, "the layout %s has %d tags, one was expected", dir, len(all)).WithRemedy("Name one: %s:TAG.", dir)
	}
	return strings.Join(all, ""), err
}

// unpulled explains an error of a registry.
func unpulled(what string, err error) error {
	var e *atelier.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	return atelier.Errorf(atelier.Unavailable, "%s: %w", what, err).
		WithRemedy("Check the reference, and log in where the registry asks for it ('docker login', 'oras login' or 'skopeo login').")
}

// packageContent is a package at the hub, for the registry library to read.
type packageContent struct {
	client *client.Client
	ws, id string
}

// Fetch implements content.Fetcher.
func (p *packageContent) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return p.client.OpenPackageContent(ctx, p.ws, p.id, atelier.Digest(d.Digest))
}

// Exists implements content.ReadOnlyStorage.
func (p *packageContent) Exists(context.Context, ocispec.Descriptor) (bool, error) { return true, nil }

// descriptorOf returns d as OCI has it.
func descriptorOf(d *atelier.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size}
}

// pushPackage brings a package into a repository of a registry that is not the hub's,
// under its tags. Layers that are there are not sent again.
func (a *app) pushPackage(ctx context.Context, cl *client.Client, ws string, p *atelier.Package, reference string, plain bool) error {
	repo, err := a.repository(reference, plain)
	if err != nil {
		return err
	}
	tag := p.Tag
	if r := repo.Reference.Reference; r != "" {
		tag = r
	}
	from := &packageContent{cl, ws, p.ID}
	for tag, d := range map[string]*atelier.Descriptor{tag: p.Manifest, tag + atelier.ModelPackTag: p.ModelPack.Manifest} {
		progress := a.newProgress("Pushing "+tag, 0)
		options := oras.DefaultCopyGraphOptions
		options.PostCopy = func(_ context.Context, d ocispec.Descriptor) error {
			progress.add(d.Size)
			return nil
		}
		if err := oras.CopyGraph(ctx, from, repo, descriptorOf(d), options); err != nil {
			return unpulled("push to "+repo.Reference.Registry+"/"+repo.Reference.Repository, err)
		}
		if err := repo.Tag(ctx, descriptorOf(d), tag); err != nil {
			return unpulled("tag "+reference, err)
		}
		progress.finish()
	}
	a.say("Pushed %s/%s:%s", repo.Reference.Registry, repo.Reference.Repository, tag)
	return nil
}

// ownRegistry returns where a workspace's own registry has a package, "" where the hub
// keeps its images; plain says that it is spoken to without TLS.
func ownRegistry(w atelier.Workspace, p *atelier.Package) (reference string, plain bool) {
	for _, r := range w.Resources {
		if r.Kind != atelier.ResourceRegistry || r.Provider == atelier.ProviderBuiltin {
			continue
		}
		if u, err := url.Parse(r.Address); err == nil {
			return u.Host + strings.TrimSuffix(u.Path, "/") + "/" + p.Package + ":" + p.Tag, u.Scheme == "http"
		}
	}
	return "", false
}

// isTar reports whether a base comes as a tar file of its root file system.
func isTar(from string) bool {
	info, err := os.Stat(from)
	return err == nil && info.Mode().IsRegular() && filepath.Ext(from) == ".tar"
}
