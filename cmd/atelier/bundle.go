package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) bundleCommand() *cobra.Command {
	return group("bundle", "Take deployments to devices without a network", a.bundleExport())
}

func (a *app) bundleExport() *cobra.Command {
	var spec client.BundleSpec
	var to string
	cmd := &cobra.Command{
		Use:   "export [DEPLOYMENT]…",
		Short: "Write a bundle that devices import without reaching the hub",
		Long: `Write a bundle that devices import without reaching the hub.

A bundle is an OCI image layout, a directory or, where the name ends in .tar, a file. It holds what the devices would get over
MQTT: their desired states, signed for each, and all the content that those need. It is for the devices that the deployments
select, or for those of them that --device names; --device alone takes all that these devices shall run.

Put it into the bundle directory of the device (/var/lib/atelier/bundles), or run 'atelier-agent import' on it there.

--from and --since-device leave out what the devices have: a device that lacks some of it refuses the bundle and says so.`,
		Example: `  atelier bundle export digits --to digits.tar
  atelier bundle export --device press-4 --since-device press-4 --to /media/stick/press-4`,
		Args: between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args)+len(spec.Devices) == 0 {
				return errUsage{fmt.Errorf("nothing says what to export\n  Name a deployment, or a device with --device NAME")}
			}
			spec.Deployments = args
			if to == "" {
				to = append(args, spec.Devices...)[0] + ".tar"
			}
			return a.exportBundle(cmd.Context(), spec, to)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&to, "to", "", "directory, or file that ends in .tar (default NAME.tar)")
	flags.StringArrayVar(&spec.Devices, "device", nil, "only for this device, by name or id; may be repeated")
	flags.StringArrayVar(&spec.From, "from", nil, "leave out the files of MODEL:VERSION; may be repeated")
	flags.StringVar(&spec.SinceDevice, "since-device", "", "leave out what this device was last known to hold")
	return cmd
}

// exportBundle writes a bundle. It has its name only when it is there as a whole.
func (a *app) exportBundle(ctx context.Context, spec client.BundleSpec, to string) (err error) {
	if _, err := os.Lstat(to); err == nil {
		return atelier.Errorf(atelier.Exists, "%s is there already", to).WithRemedy("Remove it, or choose another name with --to.")
	}
	cl, ws, err := a.open()
	if err != nil {
		return err
	}
	b, err := cl.ExportBundle(ctx, ws, spec)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }() // it was read to its end, or is given up
	p := a.newProgress("Exporting", b.Size)
	defer p.finish()
	part := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".part")
	if err := os.RemoveAll(part); err != nil { // of an export that was cut
		return unwritable(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(part))
		}
	}()
	from := io.TeeReader(b, p)
	if strings.HasSuffix(to, ".tar") {
		err = writeFile(part, from, b.Size)
	} else {
		err = unpackLayout(part, from)
	}
	if err == nil {
		err = unwritable(os.Rename(part, to))
	}
	if err != nil {
		return err
	}
	out := struct {
		Path   string         `json:"path"`
		Size   int64          `json:"size"`
		Digest atelier.Digest `json:"digest"`
	}{to, b.Size, b.Digest}
	return a.print(out, func() table { return table{rows: [][]string{{to, atelier.FormatBytes(b.Size), string(b.Digest)}}} })
}

// unwritable explains an error of the local disk.
func unwritable(err error) error {
	if err == nil {
		return nil
	}
	return atelier.Errorf(atelier.Invalid, "write the bundle: %w", err)
}

// writeFile writes all of from to a new file, synced, so that a medium can be taken away.
func writeFile(name string, from io.Reader, size int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return unwritable(err)
	}
	n, err := io.Copy(f, from)
	if err == nil && size >= 0 && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return errors.Join(atelier.Errorf(atelier.Unavailable, "the bundle broke off after %s: %w", atelier.FormatBytes(n), err), f.Close())
	}
	return unwritable(errors.Join(f.Sync(), f.Close()))
}

// unpackLayout writes the files of a layout in a tar file into a new directory.
// Blobs are checked against their digests.
func unpackLayout(dir string, from io.Reader) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return unwritable(err)
	}
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, from) // it must have come to its end
			if err == nil {
				return nil
			}
		}
		if err != nil {
			return atelier.Errorf(atelier.Unavailable, "the bundle broke off: %w", err)
		}
		digest := atelier.Digest("")
		if hex, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			digest, err = atelier.ParseDigest("sha256:" + hex)
		} else if h.Name != "oci-layout" && h.Name != "index.json" {
			err = atelier.Errorf(atelier.Internal, "the hub sent a file %.80q, which is none of a bundle", h.Name)
		}
		if err != nil {
			return err // no name that comes from elsewhere becomes a path
		}
		sum := sha256.New()
		if err := writeFile(filepath.Join(dir, filepath.FromSlash(path.Clean(h.Name))), io.TeeReader(r, sum), h.Size); err != nil {
			return err
		}
		if got := atelier.DigestFrom(sum); digest != "" && got != digest {
			return atelier.Errorf(atelier.Corrupt, "%s of the bundle has the digest %s", digest, got).WithRemedy("Export it again.")
		}
	}
}
