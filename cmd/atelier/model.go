package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) modelCommand() *cobra.Command {
	return group("model", "Register models and look after their versions",
		a.modelRegister(), a.modelList(), a.modelShow(), a.modelDownload(), a.modelTag(),
		a.modelArchive("archive", "Hide a version from 'latest' and from new deployments", true),
		a.modelArchive("unarchive", "Take a version out of the archive", false),
		a.modelGolden(), a.modelDelete())
}

// splitVersion takes "digits:2" apart; "" is the version where there is none.
func splitVersion(ref string) (model, version string, err error) {
	model, version, _ = strings.Cut(ref, ":")
	if version != "" && version != "latest" {
		if n, err := strconv.Atoi(version); err != nil || n < 1 {
			return "", "", errUsage{fmt.Errorf("version %q of %q is neither a number from 1 nor \"latest\"", version, model)}
		}
	}
	if model == "" {
		return "", "", errUsage{fmt.Errorf("%q names no model; write NAME or NAME:VERSION", ref)}
	}
	return model, version, nil
}

func parseTags(pairs []string) (map[string]string, error) {
	tags := map[string]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, errUsage{fmt.Errorf("tag %q is not of the form key=value", p)}
		}
		tags[k] = v
	}
	return tags, nil
}

// localFile is a file to be uploaded and its path within the version.
type localFile struct {
	dir  string // the directory that it was found in, which it must not lead out of; "" where it was named itself
	name string // in dir
	file atelier.File
}

func (f *localFile) String() string { return filepath.Join(f.dir, f.name) }

// open opens the file for reading. What was a file in the directory may have
// become a link out of it in the meantime: that is refused here.
func (f *localFile) open() (*os.File, error) {
	var in *os.File
	var err error
	if f.dir == "" {
		in, err = os.Open(f.name)
	} else {
		in, err = os.OpenInRoot(f.dir, f.name)
	}
	if err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "read the file: %w", err)
	}
	return in, nil
}

// localFiles lists the files below the paths: a file by its base name, a
// directory's by their path within it.
func localFiles(paths []string) ([]localFile, error) {
	var files []localFile
	add := func(f localFile) error {
		if err := atelier.CheckFilePath(f.file.Path); err != nil {
			return err
		}
		for _, other := range files {
			if f.file.Path == other.file.Path {
				return atelier.Errorf(atelier.Invalid, "two files would both be named %q: %s and %s", f.file.Path, &other, &f)
			}
		}
		files = append(files, f)
		return nil
	}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "read %s: %w", p, err)
		}
		switch {
		case info.IsDir():
			err = eachFile(p, add)
		case !info.Mode().IsRegular(): // a device or a pipe may never end
			err = atelier.Errorf(atelier.Invalid, "%s is neither a file nor a directory", p)
		default:
			err = add(localFile{name: p, file: atelier.File{Path: filepath.Base(p), Size: info.Size()}})
		}
		if err != nil {
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, atelier.Errorf(atelier.Invalid, "there are no files in %s", strings.Join(paths, ", "))
	}
	return files, nil
}

// eachFile calls add for the files below dir. A link within it stands for the file that
// it leads to. One that leads out of it is refused: who registers a directory that
// came from elsewhere means what is in it, and not a key in their home that it points to.
func eachFile(dir string, add func(localFile) error) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return atelier.Errorf(atelier.Invalid, "read %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return atelier.Errorf(atelier.Invalid, "read %s: %w", filepath.Join(dir, name), err)
		}
		if d.IsDir() {
			return nil
		}
		f := localFile{dir: dir, name: filepath.FromSlash(name), file: atelier.File{Path: name}}
		info, err := root.Stat(f.name)
		if err != nil {
			if to, broken := os.Readlink(f.String()); broken == nil && exists(f.String()) {
				return atelier.Errorf(atelier.Invalid, "%s is a link to %s, which is not within %s by a relative path", &f, to, dir).
					WithRemedy("Put the file in the link's place if it belongs to the model ('cp -rL' copies a directory so), or remove the link.")
			}
			return atelier.Errorf(atelier.Invalid, "%s cannot be read: %w", &f, err).
				WithRemedy("Mend or remove it, or name the files to register one by one.")
		}
		if !info.Mode().IsRegular() {
			return atelier.Errorf(atelier.Invalid, "%s is neither a file nor a directory", &f)
		}
		f.file.Size = info.Size()
		return add(f)
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// upload sends the files that the workspace ("" for the hub) does not hold yet.
func (a *app) upload(ctx context.Context, cl *client.Client, ws string, files []localFile) ([]atelier.File, error) {
	var total int64
	for _, f := range files {
		total += f.file.Size
	}
	hashing := a.newProgress("Hashing", total)
	for i := range files {
		var err error
		if files[i].file.Digest, err = digestOf(&files[i], hashing); err != nil {
			return nil, err
		}
	}
	hashing.finish()
	p := a.newProgress("Uploading", total)
	defer p.finish()
	out := make([]atelier.File, 0, len(files))
	for _, f := range files {
		if err := uploadFile(ctx, cl, ws, f, p); err != nil {
			return nil, err
		}
		out = append(out, f.file)
	}
	return out, nil
}

func digestOf(f *localFile, p *progress) (_ atelier.Digest, err error) {
	in, err := f.open()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(hash, p), in); err != nil {
		return "", atelier.Errorf(atelier.Invalid, "read the file: %w", err)
	}
	return atelier.DigestFrom(hash), nil
}

func uploadFile(ctx context.Context, cl *client.Client, ws string, f localFile, p *progress) (err error) {
	if there, err := cl.HasBlob(ctx, ws, f.file.Digest); err != nil {
		return err
	} else if there {
		p.add(f.file.Size)
		return nil
	}
	in, err := f.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	// Exactly what was hashed: a file that grows meanwhile is cut there, one that
	// changes is refused by the hub.
	content := io.TeeReader(io.LimitReader(in, f.file.Size), p)
	if _, err := cl.UploadBlob(ctx, ws, content, f.file.Size, f.file.Digest); err != nil {
		return fmt.Errorf("upload %s: %w", f.file.Path, err)
	}
	return nil
}

func (a *app) modelRegister() *cobra.Command {
	var v client.NewVersion
	var tags []string
	var script string
	cmd := &cobra.Command{
		Use:   "register NAME PATH...",
		Short: "Register files or directories as a new version of a model",
		Long: `Register files or directories as a new version of a model; the model is made with its first version.

Files are uploaded once: content that the workspace holds already is not sent again. Inputs and outputs are read out of the
ONNX file. With --script, what answers is a scoring script among the files, a path within them, that runs in the environment which
--environment names; the other files are what it loads. A directory's files keep their paths within it; a link in it stands for the file it leads to, which must lie within the
directory as well. A file golden.json holds inputs with the outputs that an ONNX model must give on each device before it takes traffic
('atelier model golden').`,
		Example: `  atelier model register digits digits.onnx --description "first try" --tag team=vision
  atelier model register detector ./export/ --entry model.onnx
  atelier model register churn ./churn/ --script score.py --environment sklearn:2`,
		Args: between(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if v.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if script != "" {
				if v.Entry != "" || v.Kind != "" && v.Kind != atelier.VariantPython {
					return errUsage{errors.New("--script says what runs; leave --entry and --kind out")}
				}
				v.Kind, v.Entry = atelier.VariantPython, filepath.ToSlash(filepath.Clean(script))
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			if err := atelier.CheckName("model", args[0]); err != nil && !atelier.IsID(args[0]) {
				return err
			}
			files, err := localFiles(args[1:])
			if err != nil {
				return err
			}
			if v.Files, err = a.upload(cmd.Context(), cl, ws, files); err != nil {
				return err
			}
			out, err := cl.RegisterVersion(cmd.Context(), ws, args[0], v)
			if err != nil {
				return err
			}
			a.say("Registered %s:%d", out.Model, out.Number)
			return a.print(out, func() table { return versionTable(out) })
		},
	}
	cmd.Flags().StringVar(&v.Description, "description", "", "what is new in this version")
	cmd.Flags().StringArrayVar(&tags, "tag", nil, "tag of the version, key=value; may be repeated")
	cmd.Flags().StringVar(&v.Entry, "entry", "", "the file that the engine loads, where there are several candidates")
	cmd.Flags().StringVar(&script, "script", "", "the scoring script, by its path among the files")
	cmd.Flags().StringVar(&v.Environment, "environment", "", "the environment that the script runs in, NAME or NAME:VERSION")
	cmd.Flags().StringVar(&v.Kind, "kind", "", "kind of the variant (default onnx)")
	return cmd
}

func versionTable(v atelier.Version) table {
	t := table{rows: [][]string{
		{"Model:", fmt.Sprintf("%s:%d", v.Model, v.Number)},
		{"Digest:", string(v.Digest)},
		{"Size:", atelier.FormatBytes(v.Size)},
	}}
	if v.Description != "" {
		t.add("Description:", v.Description)
	}
	if len(v.Tags) > 0 {
		t.add("Tags:", labelsOf(v.Tags))
	}
	if v.Archived {
		t.add("Archived:", "yes")
	}
	for _, variant := range v.Variants {
		t.add("Variant:", fmt.Sprintf("%s, %s, %s", variant.Kind, variant.Entry, count(len(variant.Files), "file", "files")))
		if e := variant.Environment; e != nil {
			t.add("Environment:", fmt.Sprintf("%s:%d, Python %s on %s", e.Name, e.Number, e.Python, strings.Join(variant.Requires.Arch, ", ")))
		}
		if variant.Signature != nil {
			t.add("Inputs:", tensors(variant.Signature.Inputs))
			t.add("Outputs:", tensors(variant.Signature.Outputs))
		}
	}
	return t
}

func modelTable(m atelier.Model) table {
	t := table{rows: [][]string{{"Model:", m.Name}, {"Framework:", m.Framework}}}
	if m.Description != "" {
		t.add("Description:", m.Description)
	}
	if len(m.Tags) > 0 {
		t.add("Tags:", labelsOf(m.Tags))
	}
	return t
}

func (a *app) modelList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the models", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Models(cmd.Context(), ws))
			if err != nil {
				return err
			}
			return a.print(all, func() table {
				t := table{head: []string{"NAME", "LATEST", "FRAMEWORK", "TAGS", "DESCRIPTION", "UPDATED"}}
				for _, m := range all {
					t.add(m.Name, strconv.Itoa(m.Latest), m.Framework, labelsOf(m.Tags), m.Description, ago(m.Updated))
				}
				if len(all) == 0 {
					t.note = "There is no model yet; register one with 'atelier model register NAME FILE'."
				}
				return t
			})
		},
	}
}

func (a *app) modelShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME[:VERSION]", Short: "Show a model with its versions, or one version", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			model, number, err := splitVersion(args[0])
			if err != nil {
				return err
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			if number != "" {
				v, err := cl.Version(cmd.Context(), ws, model, number)
				if err != nil {
					return err
				}
				return a.print(v, func() table { return versionTable(v) })
			}
			m, err := cl.Model(cmd.Context(), ws, model)
			if err != nil {
				return err
			}
			versions, err := client.Collect(cl.Versions(cmd.Context(), ws, model))
			if err != nil {
				return err
			}
			both := struct {
				atelier.Model
				Versions []atelier.Version `json:"versions"`
			}{m, versions}
			return a.print(both, func() table {
				t := modelTable(m)
				t.about, t.rows = t.rows, nil
				t.head = []string{"VERSION", "DIGEST", "SIZE", "TAGS", "DESCRIPTION", "CREATED", "ARCHIVED"}
				for _, v := range versions {
					t.add(fmt.Sprintf("%s:%d", m.Name, v.Number), v.Digest.Short(), atelier.FormatBytes(v.Size), labelsOf(v.Tags), v.Description, ago(v.Created), yesNo(v.Archived))
				}
				return t
			})
		},
	}
}

func (a *app) modelDownload() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "download NAME[:VERSION]", Short: "Download the files of a version, and check them", Args: exactly(1),
		Example: "  atelier model download digits:2 --to ./digits-2",
		RunE: func(cmd *cobra.Command, args []string) error {
			model, number, err := splitVersion(args[0])
			if err != nil {
				return err
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			v, err := cl.Version(cmd.Context(), ws, model, firstOf(number, "latest"))
			if err != nil {
				return err
			}
			if dir == "" {
				dir = fmt.Sprintf("%s-%d", v.Model, v.Number)
			}
			p := a.newProgress("Downloading", v.Size)
			defer p.finish()
			for _, variant := range v.Variants {
				for _, f := range variant.Files {
					if err := downloadFile(cmd.Context(), cl, ws, v, f, dir, p); err != nil {
						return err
					}
				}
			}
			a.say("Downloaded %s:%d into %s", v.Model, v.Number, dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "to", "", "directory (default NAME-VERSION)")
	return cmd
}

// downloadFile puts a file in place only when its digest is right.
func downloadFile(ctx context.Context, cl *client.Client, ws string, v atelier.Version, f atelier.File, dir string, p *progress) (err error) {
	if err := atelier.CheckFilePath(f.Path); err != nil {
		return err
	}
	to := filepath.Join(dir, filepath.FromSlash(f.Path))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return atelier.Errorf(atelier.Invalid, "make the directory: %w", err)
	}
	body, err := cl.OpenFile(ctx, ws, v.Model, strconv.Itoa(v.Number), f.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	part, err := os.CreateTemp(filepath.Dir(to), ".download-*")
	if err != nil {
		return atelier.Errorf(atelier.Invalid, "make the file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part.Name()))
		}
	}()
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(part, hash, p), body)
	if err = errors.Join(err, part.Close()); err != nil {
		return atelier.Errorf(atelier.Unavailable, "download %s: %w", f.Path, err)
	}
	if got := atelier.DigestFrom(hash); got != f.Digest {
		return atelier.Errorf(atelier.Corrupt, "%s came with the digest %s, expected was %s", f.Path, got, f.Digest).
			WithRemedy("Try again; if it repeats, the hub's storage is damaged.")
	}
	if err := os.Chmod(part.Name(), 0o644); err != nil {
		return atelier.Errorf(atelier.Invalid, "finish %s: %w", f.Path, err)
	}
	return os.Rename(part.Name(), to)
}

func (a *app) modelTag() *cobra.Command {
	var remove []string
	var description string
	cmd := &cobra.Command{
		Use: "tag NAME[:VERSION] [key=value...]", Short: "Set or remove tags, or the description, of a model or a version", Args: between(1, -1),
		Example: "  atelier model tag digits:2 stage=production --remove stage-candidate",
		RunE: func(cmd *cobra.Command, args []string) error {
			model, number, err := splitVersion(args[0])
			if err != nil {
				return err
			}
			set, err := parseTags(args[1:])
			if err != nil {
				return err
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			var about *string
			if cmd.Flags().Changed("description") {
				about = &description
			}
			merge := func(tags map[string]string) map[string]string {
				merged := map[string]string{}
				for k, v := range tags {
					merged[k] = v
				}
				for k, v := range set {
					merged[k] = v
				}
				for _, k := range remove {
					delete(merged, k)
				}
				return merged
			}
			if number == "" {
				m, err := cl.Model(cmd.Context(), ws, model)
				if err != nil {
					return err
				}
				m, err = cl.UpdateModel(cmd.Context(), ws, model, client.ModelChange{Description: about, Tags: merge(m.Tags)})
				if err != nil {
					return err
				}
				return a.print(m, func() table { return modelTable(m) })
			}
			v, err := cl.Version(cmd.Context(), ws, model, number)
			if err != nil {
				return err
			}
			v, err = cl.UpdateVersion(cmd.Context(), ws, model, strconv.Itoa(v.Number), client.VersionChange{Description: about, Tags: merge(v.Tags)})
			if err != nil {
				return err
			}
			return a.print(v, func() table { return versionTable(v) })
		},
	}
	cmd.Flags().StringArrayVar(&remove, "remove", nil, "key of a tag to remove; may be repeated")
	cmd.Flags().StringVar(&description, "description", "", "new description")
	return cmd
}

func (a *app) modelArchive(use, short string, archived bool) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME:VERSION", Short: short, Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			model, number, err := splitVersion(args[0])
			if err != nil {
				return err
			}
			if number == "" {
				return errUsage{fmt.Errorf("%q names no version; write NAME:VERSION", args[0])}
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			v, err := cl.UpdateVersion(cmd.Context(), ws, model, number, client.VersionChange{Archived: &archived})
			if err != nil {
				return err
			}
			return a.print(v, func() table { return versionTable(v) })
		},
	}
}

func (a *app) modelDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME[:VERSION]", Short: "Delete a version, or a model with all its versions; refused while deployed", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			model, number, err := splitVersion(args[0])
			if err != nil {
				return err
			}
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			if number == "" {
				err = cl.DeleteModel(cmd.Context(), ws, model)
			} else {
				err = cl.DeleteVersion(cmd.Context(), ws, model, number)
			}
			if err != nil {
				return err
			}
			a.say("Deleted %s.", args[0])
			return nil
		},
	}
}
