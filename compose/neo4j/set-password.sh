# The image runs this as root before the server (EXTENSION_SCRIPT), instead of its own NEO4J_AUTH=neo4j/PASSWORD, which
# refuses a password with a slash and is shown by `docker inspect`. A database that has a password keeps it.
password=$(cat /run/secrets/neo4j-password)
if [[ ${#password} -lt 8 || $password == [-@]* ]]; then
    echo "NEO4J_PASSWORD must have at least 8 characters, and must not begin with - or @:" \
        "set another one, then run \`docker compose up --force-recreate\`" >&2
    exit 1
fi
mkdir -p /data/dbms
chown neo4j:neo4j /data/dbms
su-exec neo4j:neo4j neo4j-admin dbms set-initial-password "$password"
unset password
