package main

import (
	"github.com/spf13/cobra"

	"github.com/jcp/ticketwave/outbox/admin"
	"github.com/jcp/ticketwave/outbox/admin/api"
)

func (a *app) token() *cobra.Command {
	var name, role string
	c := &cobra.Command{
		Use: "new --name NAME --role viewer|operator", Short: "Make a token, and the line for the relay's token file", Args: cobra.NoArgs,
		Long:    "Makes a token. It is shown once: the token file holds only its hash. The relay reads the file again when it changes.",
		Example: "  outboxctl token new --name alice --role operator",
		RunE: func(*cobra.Command, []string) error {
			token, line, err := admin.NewToken(name, api.Role(role))
			if err != nil {
				return usagef("%v", err)
			}
			if done, err := a.json(map[string]string{"token": token, "line": line}); done {
				return err
			}
			a.printf("token, for %s alone (it is shown this once):\n\n  %s\n\nline for the file that TW_ADMIN_TOKENS names:\n\n  %s\n", name, token, line)
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "", "who it is for; the audit log shows it")
	c.Flags().StringVar(&role, "role", "", "viewer (may look) or operator (may change)")
	must(c.MarkFlagRequired("name"))
	must(c.MarkFlagRequired("role"))
	must(c.RegisterFlagCompletionFunc("role", fixed("viewer", "operator")))
	return group("token", "Make tokens for the API", "  outboxctl token new --name alice --role operator", c)
}
