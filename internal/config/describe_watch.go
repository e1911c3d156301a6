package config

func describeWatch() key {
	return key{name: "watch", kind: section, example: "{rules: watch.yml}",
		doc:   "The watch over what is recorded: it raises alarms, and ends the token that an attempt to get out came from.",
		unset: "the rules that come with sallyport hold, and alarms are in the audit log, the metrics and at the admin listener",
		keys: []key{
			{name: "rules", kind: path, example: "watch.yml", doc: "A file of rules that holds in place of those that come with sallyport. doc/watch.md has them and their form.",
				unset: "those that come with sallyport hold"},
			{name: "baseline", kind: path, example: "/var/lib/sallyport/baseline.json", doc: "A file that keeps which route causes what, as rules with `novel` have learned it.",
				unset: "it is learned anew after each restart, for the rule's warm-up"},
			{name: "webhook", kind: section, example: "{url: https://alerts.example.com/sallyport}", doc: "Where alarms are sent, as one JSON object each.", unset: "they are sent nowhere",
				keys: []key{
					{name: "url", kind: link, required: true, example: "https://alerts.example.com/sallyport", check: fetchURL, pattern: `^https?://[^ #]+$`, shape: "an https URL",
						doc: "It must be https, except on a loopback host. It may be at a private address: it is written here."},
					{name: "secret_file", kind: path, example: "/run/secrets/webhook", doc: "A file with a secret that is sent along (`Authorization: Bearer`). It is read for each alarm.",
						unset: "no secret is sent"},
				}},
		}}
}
