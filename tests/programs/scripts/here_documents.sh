name=world
cat <<EOF
hello $name, $((6 * 7))
EOF
cat <<'EOF' | tr a-z A-Z
literal $name
EOF
cat <<-EOF
	tabs go
EOF
for n in 1 2 3; do cat; done <<EOF
once
EOF
