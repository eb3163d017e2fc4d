"""Who somebody is, as an OpenID provider proves it. What they may do here, ``tenancy`` knows."""
