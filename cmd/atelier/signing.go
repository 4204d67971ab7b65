package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

// imageSign makes the command that signs images.
func (a *app) imageSign() *cobra.Command {
	var o client.SignOrder
	cmd := &cobra.Command{
		Use: "sign REPOSITORY:TAG|REPOSITORY@DIGEST", Short: "Sign an image with the workspace's key", Args: exactly(1),
		Long: `Sign an image with the key of the workspace's images, which is made with the first signature. Beside the image the hub puts what it
contains, in SPDX. Devices start an image only when it is signed; 'cosign verify' accepts the same signature.`,
		Example: `  atelier image sign press/cell:1.4
  atelier key export > images.pem
  cosign verify --key images.pem --insecure-ignore-tlog HUB:8443/WORKSPACE/press/cell:1.4`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			o.Image = args[0]
			img, err := cl.SignImage(cmd.Context(), ws, o)
			if err != nil {
				return err
			}
			return a.print(img, func() table { return oneImageTable(client.Image{Image: img}) })
		},
	}
	cmd.Flags().BoolVar(&o.Unlisted, "no-sbom", false, "do not list what the image contains")
	return cmd
}

func (a *app) keyCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the keys that sign the workspace's images", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withKeys(cmd.Context(), func(keys []atelier.SigningKey) error {
				return a.print(keys, func() table { return keyTable(keys) })
			})
		},
	}
	export := &cobra.Command{
		Use: "export [ID]", Short: "Print a public key as PEM, for cosign and others", Args: between(0, 1),
		Long: `Print a public key as PEM: the one that signs, or the one whose id begins with ID.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withKeys(cmd.Context(), func(keys []atelier.SigningKey) error {
				key, err := oneKey(keys, strings.Join(args, ""))
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write([]byte(key.PEM))
				return err
			})
		},
	}
	revoke := false
	rotate := &cobra.Command{
		Use: "rotate", Short: "Make a new key for the workspace's images", Args: exactly(0),
		Long: `Make a new key for the workspace's images; the first one where there is none. What older keys signed stays trusted.

With --revoke it does not: devices refuse what only an older key signed as soon as they hear of the new one. Modules that run go on. Sign
again, with 'atelier image sign', what is to start from now on, and deploy it again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			keys, err := cl.RotateSigningKey(cmd.Context(), ws, revoke)
			if err != nil {
				return err
			}
			return a.print(keys, func() table { return keyTable(keys) })
		},
	}
	rotate.Flags().BoolVar(&revoke, "revoke", false, "end trust in the older keys")
	return group("key", "Show, export and rotate the keys that sign the workspace's images", list, export, rotate)
}

// withKeys does something with the keys of the workspace in use.
func (a *app) withKeys(ctx context.Context, do func([]atelier.SigningKey) error) error {
	cl, ws, err := a.open()
	if err != nil {
		return err
	}
	keys, err := cl.SigningKeys(ctx, ws)
	if err != nil {
		return err
	}
	return do(keys)
}

// oneKey returns the key that signs, or the one whose id begins with prefix.
func oneKey(keys []atelier.SigningKey, prefix string) (key atelier.SigningKey, err error) {
	if len(keys) == 0 {
		return key, atelier.Errorf(atelier.NotFound, "the workspace has no key for images yet").
			WithRemedy("It is made with the first 'atelier image sign', or with 'atelier key rotate'.")
	}
	found := 0
	for _, k := range keys {
		if prefix == "" && k.Signs || prefix != "" && strings.HasPrefix(k.ID, prefix) {
			key = k
			found++
		}
	}
	if found != 1 {
		return key, atelier.Errorf(atelier.NotFound, "%d keys of images have an id that begins with %.64q, expected one", found, prefix).
			WithRemedy("See 'atelier key list'.")
	}
	return key, nil
}

func keyTable(keys []atelier.SigningKey) table {
	t := table{head: []string{"ID", "USE", "MADE"}}
	for _, k := range keys {
		use := "trusted"
		if k.Signs {
			use = "signs"
		}
		t.add(k.ID[:min(16, len(k.ID))], use, ago(k.Made))
	}
	if len(keys) == 0 {
		t.note = "There is no key yet; it is made with the first 'atelier image sign'."
	}
	return t
}

// signedBy says by which key an image is signed.
func signedBy(img atelier.Image) string {
	switch s := img.Signature; {
	case s == nil:
		return "no"
	case !s.Trusted:
		return "by " + s.Key[:min(16, len(s.Key))] + ", which was revoked"
	default:
		return "by " + s.Key[:min(16, len(s.Key))]
	}
}
