package daemon

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options are what every service can be told.
type Options struct {
	// DatabaseURL connects as the service's own login role.
	DatabaseURL string
	// AMQPURL is the broker's.
	AMQPURL string
	// HTTPAddr is where HTTP is served.
	HTTPAddr string
	// LogLevel is the lowest level that is logged.
	LogLevel slog.Level

	health bool
}

// Setting is one thing that a program can be told: flag over environment over default.
type Setting struct {
	// Flag and Env name it.
	Flag, Env string
	// Default is used when neither is given.
	Default string
	// Wants says what it takes, for people.
	Wants string
	// Set takes the value, or returns an error when it is none.
	Set func(value string) error

	secret bool
	hidden bool // not even a part of it is shown
	given  *string
}

// Text is a setting that takes any text.
func Text(into *string, flagName, env, fallback, wants string) Setting {
	return Checked(into, flagName, env, fallback, wants, func(string) bool { return true })
}

// Checked is a setting that takes a text for which ok is true.
func Checked(into *string, flagName, env, fallback, wants string, ok func(value string) bool) Setting {
	return Setting{Flag: flagName, Env: env, Default: fallback, Wants: wants, Set: func(value string) error {
		if !ok(value) {
			return errValue
		}
		*into = value
		return nil
	}}
}

// Secret is a setting whose value is never shown. It may be left out. With env+"_FILE" and a file's name in its stead the value
// is the file's content, without white space at its ends; [FromFile] makes that setting.
func Secret(into *string, flagName, env, wants string, ok func(value string) bool) Setting {
	s := Setting{Flag: flagName, Env: env, Wants: wants, hidden: true}
	s.Set = func(value string) error {
		switch {
		case value == "": // it may come from a file
		case ok(value):
			*into = value
		default:
			return errValue
		}
		return nil
	}
	return s
}

// FromFile is the setting that names the file with the value of a Secret.
func FromFile(s Setting) Setting {
	return Setting{Flag: s.Flag + "-file", Env: s.Env + "_FILE", Wants: "a file with that: " + s.Wants, Set: func(name string) error {
		if name == "" {
			return nil
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if value := strings.TrimSpace(string(content)); value != "" {
			return s.Set(value)
		}
		return errValue
	}}
}

// Whole is a setting that takes a whole number from least to most.
func Whole(into *int, flagName, env string, fallback, least, most int) Setting {
	return Setting{
		Flag: flagName, Env: env, Default: strconv.Itoa(fallback), Wants: fmt.Sprintf("a whole number from %d to %d", least, most),
		Set: func(value string) error {
			n, err := strconv.Atoi(value)
			if err != nil || n < least || n > most {
				return errValue
			}
			*into = n
			return nil
		},
	}
}

// Duration is a setting that takes a Go duration from least to most.
func Duration(into *time.Duration, flagName, env string, fallback, least, most time.Duration) Setting {
	return Setting{
		Flag: flagName, Env: env, Default: short(fallback), Wants: fmt.Sprintf("a duration from %s to %s, such as %s", short(least), short(most), short(fallback)),
		Set: func(value string) error {
			d, err := time.ParseDuration(value)
			if err != nil || d < least || d > most {
				return errValue
			}
			*into = d
			return nil
		},
	}
}

// short is 24h for 24h0m0s.
func short(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

var (
	errHelp  = errors.New("help was asked for")
	errValue = errors.New("not a value of this setting")
)

// common are the settings of Options.
func (o *Options) common(httpAddr string) []Setting {
	return []Setting{
		urlSetting(&o.DatabaseURL, "database", "TW_DATABASE_URL", "postgres://user:password@host:port/database", "postgres", "postgresql"),
		urlSetting(&o.AMQPURL, "amqp", "TW_AMQP_URL", "amqp://user:password@host:port/vhost", "amqp", "amqps"),
		{Flag: "http", Env: "TW_HTTP_ADDR", Default: httpAddr, Wants: "host:port or :port", Set: func(value string) error {
			o.HTTPAddr = value
			_, _, err := net.SplitHostPort(value)
			return err
		}},
		{Flag: "log-level", Env: "TW_LOG_LEVEL", Default: "info", Wants: "debug, info, warn or error", Set: func(value string) error {
			return o.LogLevel.UnmarshalText([]byte(value))
		}},
	}
}

func urlSetting(into *string, flagName, env, wants string, schemes ...string) Setting {
	s := Checked(into, flagName, env, "", wants, func(value string) bool { return IsURL(value, schemes...) })
	s.secret = true
	return s
}

// IsURL reports whether the text is a URL with a host and one of the schemes.
func IsURL(value string, schemes ...string) bool {
	u, err := url.Parse(value)
	return err == nil && u.Host != "" && slices.Contains(schemes, u.Scheme)
}

// parse reads the settings. A bad value is an error of one line that names the variable and what it takes, and
// never shows a secret.
func parse(name string, opts *Options, settings []Setting, args []string, getenv func(string) string, out io.Writer) error {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.BoolVar(&opts.health, "health", false, "")
	for i := range settings {
		s := &settings[i]
		fallback := s.Default
		if v := getenv(s.Env); v != "" {
			fallback = v
		}
		s.given = flags.String(s.Flag, fallback, "")
	}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage(out, name, settings)
		return errHelp
	case err != nil:
		return fmt.Errorf("%w (%s -help lists the flags)", err, name)
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q (%s -help lists the flags)", flags.Arg(0), name)
	}
	return set(settings, opts.health)
}

// set applies what was given. Who only asks for health needs no more than the address.
func set(settings []Setting, health bool) error {
	for _, s := range settings {
		if health && s.Env != "TW_HTTP_ADDR" {
			continue
		}
		if err := s.Set(*s.given); err == nil {
			continue
		}
		return s.refused(fmt.Sprintf("%s (-%s)", s.Env, s.Flag), *s.given)
	}
	return nil
}

// FromEnvironment sets what a program without flags is told. A bad value is an error of one line, which never shows a secret.
func FromEnvironment(settings []Setting, getenv func(string) string) error {
	for _, s := range settings {
		if value := cmp.Or(getenv(s.Env), s.Default); s.Set(value) != nil {
			return s.refused(s.Env, value)
		}
	}
	return nil
}

// refused says what is wrong with a value.
func (s Setting) refused(name, value string) error {
	switch {
	case value == "":
		return fmt.Errorf("%s is not set: want %s", name, s.Wants)
	case s.secret:
		return fmt.Errorf("%s is no such URL: want %s", name, s.Wants)
	case s.hidden:
		return fmt.Errorf("%s is no such secret: want %s", name, s.Wants)
	}
	return fmt.Errorf("%s is %q: want %s", name, value, s.Wants)
}

func usage(out io.Writer, name string, settings []Setting) {
	fmt.Fprintf(out, "%s runs the %s service of TicketWave until SIGINT or SIGTERM.\n\nusage: %s [flags]\n\n", name, name, name)
	for _, s := range settings {
		fallback := "required"
		if !s.secret {
			fallback = fmt.Sprintf("default %q", s.Default)
		}
		fmt.Fprintf(out, "  -%-14s %-18s %s (%s)\n", s.Flag, s.Env, s.Wants, fallback)
	}
	fmt.Fprintf(out, "  -%-14s %-18s %s\n\nA flag wins over the environment.\n", "health", "", "ask the service on the -http address whether it is ready, and exit")
}

// redacted is what was given, without passwords.
func redacted(settings []Setting) map[string]string {
	shown := map[string]string{}
	for _, s := range settings {
		value := *s.given
		if s.hidden && value != "" {
			value = "(set)"
		}
		if u, err := url.Parse(value); err == nil && u.Host != "" && strings.Contains(value, "://") {
			u.RawQuery = ""
			value = u.Redacted()
		}
		shown[s.Env] = value
	}
	return shown
}
