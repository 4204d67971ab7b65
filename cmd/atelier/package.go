package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) packageCommand() *cobra.Command {
	return group("package", "Make versions of models into container images and ModelPack artifacts",
		a.packageBuild(), a.packageList(), a.packageShow(), a.packageExport(), a.packagePush(),
		a.inWorkspace("delete NAME:TAG", "Delete a package with its images", "Deleted package %s.", (*client.Client).DeletePackage))
}

func (a *app) packageBuild() *cobra.Command {
	var n client.NewPackage
	var serving servingFlags
	var code string
	var detach, plain bool
	cmd := &cobra.Command{
		Use:   "build MODEL[:VERSION]",
		Short: "Make a version of a model into images",
		Long: `Make a version of a model into a container image that answers requests by itself, and a CNCF ModelPack artifact of its files.

The image holds a base, the environment that the version runs in (or ONNX Runtime), the model server, the model and its code, in layers of
their own: packages share those that are equal. It comes into the workspace's container registry as WORKSPACE/NAME:TAG, the artifact as
WORKSPACE/NAME:TAG-modelpack; where the workspace has a registry of its own, the command pushes both there. The same inputs give the same
digests, and what was built is not built again.

A version that was registered without a script can be given one here: --code names its directory, --script the file in it, --environment
what it runs in. It finds the version's files in AZUREML_MODEL_DIR.

The model server and ONNX Runtime come from the hub's runtimes:

  atelier runtime register atelier-serve VERSION bin/atelier-serve
  atelier runtime register onnxruntime VERSION libonnxruntime.so`,
		Example: `  atelier package build digits:2
  atelier package build churn:4 --base debian --arch amd64 --arch arm64 --workers 2
  atelier package build churn:4 --code ./scoring --script score.py --environment sklearn:1 --tag 4-b
  atelier package build digits:2 --base registry.example/debian@sha256:…`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if n.Model, n.Version, err = splitVersion(args[0]); err != nil {
				return err
			}
			if err := serving.read(cmd.Flags()); err != nil {
				return err
			}
			n.Serving = serving.change.To(atelier.ServingSettings{})
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			if code != "" {
				files, err := localFiles([]string{code})
				if err != nil {
					return err
				}
				n.Script = filepath.ToSlash(filepath.Clean(n.Script))
				if n.Code, err = a.upload(cmd.Context(), cl, ws, files); err != nil {
					return err
				}
			}
			if strings.Contains(n.Base, "/") {
				if n.Base, err = a.pulledBase(cmd.Context(), cl, ws, n.Base, n.Arch, plain); err != nil {
					return err
				}
			}
			p, err := cl.BuildPackage(cmd.Context(), ws, n)
			if err != nil {
				return err
			}
			if !detach {
				if p, err = a.awaitPackage(cmd.Context(), cl, ws, p); err != nil {
					return err
				}
				if err := a.pushToOwn(cmd.Context(), cl, ws, &p); err != nil {
					return err
				}
			}
			return a.print(p, func() table { return packageTable(p) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&n.Name, "name", "", "name of the package, and of its repository (default the model's)")
	f.StringVar(&n.Tag, "tag", "", "tag of the images (default the version's number)")
	f.StringVar(&n.Base, "base", "", "what the image stands on: a base's name, or REGISTRY/REPOSITORY@sha256:… (default the only base)")
	f.StringArrayVar(&n.Arch, "arch", nil, "architecture, amd64 or arm64; may be repeated (default all that there are the parts for)")
	f.StringVar(&code, "code", "", "directory with a scoring script that is not among the version's files")
	f.StringVar(&n.Script, "script", "", "the scoring script, by its path within --code")
	f.StringVar(&n.Environment, "environment", "", "the environment that the script runs in, NAME or NAME:VERSION")
	f.StringVar(&n.Description, "description", "", "what it is for")
	f.BoolVar(&detach, "detach", false, "do not wait for the build")
	f.BoolVar(&plain, "plain-http", false, "speak to the registry of --base without TLS")
	serving.add(f)
	return cmd
}

// pulledBase adds a base that is named by its reference, under a name made of that.
func (a *app) pulledBase(ctx context.Context, cl *client.Client, ws, reference string, arch []string, plain bool) (string, error) {
	repository, digest, ok := strings.Cut(reference, "@sha256:")
	if !ok || len(digest) != 64 {
		return "", atelier.Errorf(atelier.Invalid, "the base %.300q is named without its digest, and a tag may come to mean another image", reference).WithField("base").
			WithRemedy("Write REGISTRY/REPOSITORY@sha256:…, or add it under a name first: 'atelier base add NAME %s'.", reference)
	}
	name := repository[strings.LastIndex(repository, "/")+1:]
	name, _, _ = strings.Cut(name, ":")
	name += "-" + digest[:12]
	if _, err := cl.Base(ctx, ws, name); err == nil {
		return name, nil
	} else if atelier.CodeOf(err) != atelier.NotFound {
		return "", err
	}
	b, err := a.addBase(ctx, cl, ws, client.NewBase{Name: name, Source: reference}, arch, plain)
	if err == nil {
		a.say("Added base %s", b.Name)
	}
	return b.Name, err
}

// awaitPackage waits until a package is built, and shows how far it is.
func (a *app) awaitPackage(ctx context.Context, cl *client.Client, ws string, p atelier.Package) (atelier.Package, error) {
	progress := a.newProgress("Building", p.Total)
	last := int64(0)
	for wait := 50 * time.Millisecond; !p.State.Over(); wait = min(2*wait, time.Second) {
		select {
		case <-ctx.Done():
			return p, atelier.Errorf(atelier.Timeout, "interrupted: %w", ctx.Err()).
				WithRemedy("The build goes on; see 'atelier package show %s:%s'.", p.Package, p.Tag)
		case <-time.After(wait):
		}
		var err error
		if p, err = cl.Package(ctx, ws, p.ID); err != nil {
			return p, err
		}
		progress.add(max(0, p.Done-last))
		last = max(last, p.Done)
	}
	progress.finish()
	if p.State == atelier.BuildFailed {
		return p, atelier.Errorf(atelier.Unsupported, "%s:%s could not be built: %s", p.Package, p.Tag, p.Why.Message()).WithRemedy("%s", p.Why.Remedy())
	}
	return p, nil
}

// pushToOwn brings a package into the workspace's own registry, where it has one.
func (a *app) pushToOwn(ctx context.Context, cl *client.Client, ws string, p *atelier.Package) error {
	w, err := cl.Workspace(ctx, ws)
	if err != nil {
		return err
	}
	reference, plain := ownRegistry(w, p)
	if reference == "" {
		return nil
	}
	return a.pushPackage(ctx, cl, ws, p, reference, plain)
}

func (a *app) packageList() *cobra.Command {
	return &cobra.Command{
		Use: "list [NAME]", Short: "List the packages", Aliases: []string{"ls"}, Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Packages(cmd.Context(), ws, strings.Join(args, "")))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				t := table{head: []string{"NAME", "TAG", "MODEL", "BASE", "ENVIRONMENT", "ARCH", "STATE", "DIGEST", "CREATED"}}
				for _, p := range all {
					digest := ""
					if p.Manifest != nil {
						digest = shortDigest(string(p.Manifest.Digest))
					}
					var arch []string
					for _, img := range p.Images {
						arch = append(arch, img.Arch)
					}
					t.add(p.Package, p.Tag, p.Model+":"+strconv.Itoa(p.Version), p.Base, p.Environment, strings.Join(arch, ", "), string(p.State), digest, ago(p.Created))
				}
				if len(all) == 0 {
					t.note = "There is no package yet; make one with 'atelier package build MODEL:VERSION'."
				}
				return t
			})
		},
	}
}

func (a *app) packageShow() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "show NAME:TAG", Short: "Show a package and its layers", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			p, err := cl.Package(cmd.Context(), ws, args[0])
			if err == nil && wait {
				p, err = a.awaitPackage(cmd.Context(), cl, ws, p)
			}
			if err != nil {
				return err
			}
			return a.print(p, func() table { return packageTable(p) })
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is built; fail where it cannot be")
	return cmd
}

func packageTable(p atelier.Package) table {
	t := table{
		about: [][]string{
			{"Package:", p.Package + ":" + p.Tag},
			{"Model:", fmt.Sprintf("%s:%d", p.Model, p.Version)},
			{"Base:", p.Base},
		},
		head: []string{"ARCH", "LAYER", "DIGEST", "SIZE", "OF"},
	}
	about := func(name, value string) {
		if value != "" {
			t.about = append(t.about, []string{name, value})
		}
	}
	about("Environment:", p.Environment)
	about("Script:", p.Script)
	about("Serving:", p.Serving.String())
	about("Description:", p.Description)
	about("State:", string(p.State))
	if p.State != atelier.BuildReady {
		about("Why:", p.Why.Message())
	}
	if p.Manifest != nil {
		about("Image:", string(p.Manifest.Digest))
		about("ModelPack:", string(p.ModelPack.Manifest.Digest))
	}
	for _, img := range p.Images {
		for _, l := range img.Layers {
			of := ""
			if len(l.Files) > 0 {
				of = l.Path + ": " + l.Files[0].Path
			}
			if len(l.Files) > 1 {
				of += fmt.Sprintf(" and %d more", len(l.Files)-1)
			}
			digest, size := "", ""
			if l.Digest != "" {
				digest, size = shortDigest(string(l.Digest)), atelier.FormatBytes(l.Size)
			}
			t.add(img.Arch, string(l.Kind), digest, size, of)
		}
	}
	return t
}

func (a *app) packagePush() *cobra.Command {
	var plain bool
	cmd := &cobra.Command{
		Use:   "push NAME:TAG [REGISTRY/REPOSITORY[:TAG]]",
		Short: "Push a package into another registry",
		Long: `Push a package, image and ModelPack artifact, into another registry: the workspace's own where none is named. The log-ins of container tools
are used (docker login, skopeo login, oras login). Layers that are there are not sent again.`,
		Example: "  atelier package push digits:2 registry.example/models/digits",
		Args:    between(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
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
			if len(args) == 2 {
				return a.pushPackage(cmd.Context(), cl, ws, &p, args[1], plain)
			}
			w, err := cl.Workspace(cmd.Context(), ws)
			if err != nil {
				return err
			}
			reference, plain := ownRegistry(w, &p)
			if reference == "" {
				return atelier.Errorf(atelier.Conflict, "the package is in the hub's registry already, and no other is named").
					WithRemedy("Name one: atelier package push %s REGISTRY/REPOSITORY.", args[0])
			}
			return a.pushPackage(cmd.Context(), cl, ws, &p, reference, plain)
		},
	}
	cmd.Flags().BoolVar(&plain, "plain-http", false, "speak to the registry without TLS")
	return cmd
}
